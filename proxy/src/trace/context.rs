//! The context of a trace in a request's headers: W3C's `traceparent`, else B3's `b3`, else B3's several headers.

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

const SAMPLED: u8 = 1;

/// A trace, and the span that the request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    form: Form,
    pub(super) trace_id: [u8; 16],
    pub(super) parent_id: [u8; 8],
    pub(super) flags: u8,
}

/// In which form it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    W3c,
    B3Single,
    B3,
}

impl Context {
    /// The context of a request. One that is malformed is none, and stays as it is.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
        if let Some(context) = text(&TRACEPARENT).and_then(Self::w3c) {
            return Some(context);
        }
        if let Some(context) = text(&B3).and_then(Self::b3) {
            return Some(context);
        }
        let sampled = is_sampled(text(&B3_SAMPLED)) || text(&B3_FLAGS) == Some("1");
        Some(Self {
            form: Form::B3,
            trace_id: id(text(&B3_TRACE_ID)?)?,
            parent_id: id(text(&B3_SPAN_ID)?)?,
            flags: if sampled { SAMPLED } else { 0 },
        })
    }

    /// `version-trace-parent-flags`. A later version's may go on behind that.
    fn w3c(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace_id, parent_id) = (parts.next()?, parts.next()?, parts.next()?);
        let flags = parts.next()?;
        let exact = version.len() == 2 && trace_id.len() == 32 && parent_id.len() == 16 && flags.len() == 2;
        let ends = parts.next().is_none();
        if !exact || version == "ff" || (version == "00" && !ends) {
            return None;
        }
        let [_] = hex(version)?;
        let [flags] = hex(flags)?;
        Some(Self {
            form: Form::W3c,
            trace_id: id(trace_id)?,
            parent_id: id(parent_id)?,
            flags,
        })
    }

    /// `trace-span-sampled-parent`; the last two may be left out.
    fn b3(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (trace_id, span_id) = (parts.next()?, parts.next()?);
        Some(Self {
            form: Form::B3Single,
            trace_id: id(trace_id)?,
            parent_id: id(span_id)?,
            flags: if is_sampled(parts.next()) { SAMPLED } else { 0 },
        })
    }

    /// Whether spans of the trace are recorded.
    pub(super) fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Puts our span in the place of the parent.
    pub(super) fn pass_on(self, span_id: [u8; 8], headers: &mut HeaderMap) {
        let span = u64::from_be_bytes(span_id);
        let parent = u64::from_be_bytes(self.parent_id);
        let trace = u128::from_be_bytes(self.trace_id);
        let mut set = |name: HeaderName, value: String| {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        };
        match self.form {
            // Whatever its version, version 00 is what we speak.
            Form::W3c => set(
                TRACEPARENT,
                format!("00-{trace:032x}-{span:016x}-{:02x}", self.flags),
            ),
            Form::B3Single => {
                let sampled = u8::from(self.is_sampled());
                set(B3, format!("{trace:032x}-{span:016x}-{sampled}-{parent:016x}"));
            }
            Form::B3 => {
                set(B3_SPAN_ID, format!("{span:016x}"));
                set(B3_PARENT_SPAN_ID, format!("{parent:016x}"));
            }
        }
    }
}

fn is_sampled(text: Option<&str>) -> bool {
    matches!(text, Some("1" | "d" | "true"))
}

/// An id of up to `N` bytes; shorter ones, as B3 has them, are filled from the left. All zeros are none.
fn id<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.is_empty() || text.len() > 2 * N || !text.is_ascii() {
        return None;
    }
    let id: [u8; N] = hex(&format!("{text:0>width$}", width = 2 * N))?;
    (id != [0; N]).then_some(id)
}

/// Exactly `N` bytes.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "94d7f6ec6b95f3e916179cb6cfd01390";

    fn of(headers: &[(&'static str, &str)]) -> (Option<Context>, HeaderMap) {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                let value = HeaderValue::try_from(*value).expect("a value");
                (HeaderName::from_static(name), value)
            })
            .collect();
        (Context::of(&headers), headers)
    }

    #[test]
    fn each_form_is_read_and_passed_on_as_it_came() {
        let w3c = format!("00-{TRACE}-55ccfce77f972614-01");
        let b3 = format!("{TRACE}-55ccfce77f972614-d");
        let several = [
            ("x-b3-traceid", "16179cb6cfd01390"),
            ("x-b3-spanid", "55ccfce77f972614"),
            ("x-b3-sampled", "1"),
        ];
        let passed_on = |sent: &[(&'static str, &str)], name: &str| {
            let (context, mut headers) = of(sent);
            let context = context.expect("a context");
            assert!(context.is_sampled());
            context.pass_on(0xaa_u64.to_be_bytes(), &mut headers);
            headers[name].to_str().expect("text").to_owned()
        };
        assert_eq!(
            passed_on(&[("traceparent", &w3c), ("b3", &b3)], "traceparent"),
            format!("00-{TRACE}-00000000000000aa-01")
        );
        assert_eq!(
            passed_on(&[("b3", &b3)], "b3"),
            format!("{TRACE}-00000000000000aa-1-55ccfce77f972614")
        );
        assert_eq!(passed_on(&several, "x-b3-spanid"), "00000000000000aa");
        let (short, _) = of(&several);
        assert_eq!(
            short.map(|context| u128::from_be_bytes(context.trace_id)),
            Some(0x16179cb6cfd01390)
        );
    }

    #[test]
    fn what_is_malformed_is_no_context() {
        for text in [
            "",
            "00",
            &format!("ff-{TRACE}-55ccfce77f972614-01"),
            &format!("00-{TRACE}-55ccfce77f972614-01-more"),
            &format!("00-{TRACE}0-5ccfce77f972614-01"),
            &format!("00-{TRACE}-55ccfce77f972614-0g"),
            &format!("00-{TRACE}-55ccfce77f972614-011"),
            &format!("00-{}-55ccfce77f972614-01", "0".repeat(32)),
            &format!("00-{TRACE}-{}-01", "0".repeat(16)),
        ] {
            assert_eq!(of(&[("traceparent", text)]).0, None, "{text}");
        }
        let later = format!("01-{TRACE}-55ccfce77f972614-01-more");
        assert!(
            of(&[("traceparent", &later)]).0.is_some(),
            "a later version may say more"
        );
        assert_eq!(of(&[("x-b3-traceid", TRACE)]).0, None, "no span");
        assert_eq!(of(&[("b3", "0")]).0, None, "only that it is not sampled");
    }

    #[test]
    fn any_text_is_read_without_panic() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let Ok(value) = HeaderValue::from_bytes(bytes) else {
                return;
            };
            for name in [TRACEPARENT, B3, B3_TRACE_ID] {
                let mut headers = HeaderMap::new();
                headers.insert(name, value.clone());
                headers.insert(B3_SPAN_ID, value.clone());
                if let Some(context) = Context::of(&headers) {
                    context.pass_on([1; 8], &mut headers);
                    assert!(Context::of(&headers).is_some_and(|again| again.trace_id == context.trace_id));
                }
            }
        });
    }
}
