//! Words for a newcomer, on stdout, with times.

use std::{io::Write as _, time::Instant};

use console::{Term, style};

pub(crate) struct Narrator {
    out: Term,
    start: Instant,
    step: Option<Instant>,
    chapters: usize,
}

impl Narrator {
    pub(crate) fn new() -> Self {
        Self {
            out: Term::stdout(),
            start: Instant::now(),
            step: None,
            chapters: 0,
        }
    }

    pub(crate) fn chapter(&mut self, title: &str) {
        self.chapters += 1;
        let elapsed = self.start.elapsed().as_secs();
        self.line(&format!(
            "\n{} {}",
            style(format!("{}. {title}", self.chapters)).bold(),
            style(format!("[{elapsed} s]")).dim()
        ));
    }

    pub(crate) fn say(&mut self, sentence: &str) {
        self.line(&format!("   {sentence}"));
    }

    /// Says what is about to happen; [`Narrator::done`] adds how long it took.
    pub(crate) fn step(&mut self, sentence: &str) {
        self.line(&format!(" → {sentence}"));
        self.step = Some(Instant::now());
    }

    pub(crate) fn done(&mut self) {
        if let Some(since) = self.step.take() {
            self.line(&format!(
                "   {}",
                style(format!("done in {:.1} s", since.elapsed().as_secs_f64())).green()
            ));
        }
    }

    pub(crate) fn detail(&mut self, text: &str) {
        self.line(&format!("     {text}"));
    }

    pub(crate) fn file(&mut self, name: &str, text: &str) {
        self.line(&format!("   {}", style(name).underlined()));
        self.block(text);
    }

    pub(crate) fn command(&mut self, command: &str, output: &str) {
        self.line(&format!("   {}", style(format!("$ {command}")).bold()));
        self.block(output);
    }

    fn block(&mut self, text: &str) {
        for line in text.lines() {
            self.line(&format!("   | {line}"));
        }
    }

    fn line(&mut self, text: &str) {
        // A reader that has left (`| head`) ends the story for itself, not for the cluster.
        let _ = writeln!(self.out, "{text}");
    }
}
