//! Annotations as an adversary writes them: whatever the value, it is taken or refused, and what is taken applies.

use super::*;
use crate::annotations;

/// Pieces that values are made of: what readers look for, and what they do not expect.
const PIECES: [&str; 24] = [
    "",
    "0",
    "1",
    "65535",
    "65536",
    "99999999999999999999",
    "-",
    "-1",
    ",",
    "/",
    ":",
    "s",
    "ms",
    "d",
    "m",
    "Mi",
    "e",
    ".",
    "true",
    "[{\"name\":\"A\"",
    "}]",
    " ",
    "\u{fc}\u{1f9f6}",
    "\n\0$(x)",
];

#[test]
fn no_value_makes_a_panic() {
    let mut state: u64 = 7;
    let mut roll = |sides: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).expect("31 bits") % sides
    };
    let (mut taken, mut refused) = (0, 0);
    let names: Vec<&str> = annotations::inherited()
        .chain([
            "config.linkerd.io/enable-gateway",
            "linkerd.io/inject",
            "resource.opentelemetry.io/a",
        ])
        .collect();
    for name in names {
        for _ in 0..60 {
            let value: String = (0..=roll(4)).map(|_| PIECES[roll(PIECES.len())]).collect();
            let mut set = vec![(name, value.as_str())];
            if name != "linkerd.io/inject" {
                set.push(("linkerd.io/inject", "enabled"));
            }
            let pod = mk_pod(&set);
            match decide_in(&[("linkerd.io/inject", "enabled")], &pod) {
                Decision::Inject(injection) => {
                    taken += 1;
                    let after = read(patched(&pod, &injection));
                    assert!(matches!(
                        skipped(decide_in(&[], &after)),
                        SkipReason::SidecarExists(_) | SkipReason::NotEnabled
                    ));
                }
                Decision::Skip(reason) => {
                    refused += 1;
                    assert!(
                        reason
                            .to_string()
                            .contains(name.rsplit('-').next().unwrap_or(name))
                            || name == "linkerd.io/inject",
                        "{name}: {reason}"
                    );
                }
            }
        }
    }
    assert!(taken > 100 && refused > 1_000, "{taken} taken, {refused} refused");
}
