//! Telling a person what is going on: a spinner with elapsed time on a terminal, plain lines elsewhere. All on stderr.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How long a step may take before it says, as a line of its own, how far it is.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where progress is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// To stderr: a spinner per step on a terminal, one line when a step starts and ends elsewhere.
    Shown,
    /// Nowhere: tests say what went wrong in their errors.
    Silent,
}

/// One step under way. Ends with [`Step::done`]; dropped without it, the step has failed.
#[derive(Debug)]
pub struct Step {
    label: String,
    start: Instant,
    shown: Option<ProgressBar>,
    lines: bool,
    ended: bool,
}

impl Progress {
    /// Begins a step; `label` says what is being done ("Building kube-apiserver").
    pub fn step(self, label: impl Into<String>) -> Step {
        let label = label.into();
        let terminal = console::user_attended_stderr();
        let mut shown = None;
        if self == Self::Shown && terminal {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
                .expect("the template is constant and valid");
            bar.set_style(style);
            bar.set_message(label.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            shown = Some(bar);
        }
        let lines = self == Self::Shown && !terminal;
        Step {
            label,
            start: Instant::now(),
            shown,
            lines,
            ended: false,
        }
    }

    /// Says one sentence.
    pub fn say(self, sentence: impl AsRef<str>) {
        if self == Self::Shown {
            eprintln!("{}", sentence.as_ref());
        }
    }
}

impl Step {
    /// Shows how far the step is, beside its label.
    pub fn detail(&self, detail: impl AsRef<str>) {
        if let Some(bar) = &self.shown {
            bar.set_message(format!("{} ({})", self.label, detail.as_ref()));
        } else if self.lines && self.start.elapsed() > PATIENCE {
            let elapsed = self.start.elapsed().as_secs_f64();
            eprintln!("  … {} ({}) {elapsed:.0} s", self.label, detail.as_ref());
        }
    }

    /// Ends the step and says how long it took.
    pub fn done(mut self) {
        self.end("✓");
    }

    fn end(&mut self, mark: &str) {
        self.ended = true;
        let line = format!(
            "  {mark} {} {:.1} s",
            self.label,
            self.start.elapsed().as_secs_f64()
        );
        if let Some(bar) = self.shown.take() {
            bar.finish_and_clear();
            eprintln!("{line}");
        } else if self.lines {
            eprintln!("{line}");
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.ended {
            self.end("✗");
        }
    }
}
