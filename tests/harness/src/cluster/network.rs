//! The cluster's network namespace and the veth pair that joins it to the host.
//!
//! The namespace's end has the node's address and a default route through the host's end. The host gets
//! routes to the cluster's pods and Services; what pods send to the host appears to come from the node.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::address::Slot;
use super::layout::Layout;
use crate::command::{run, run_args};

/// The cluster's end of the veth pair, seen from inside.
const INNER_LINK: &str = "eth0";

/// Makes the namespace and its link unless they are there.
pub(super) fn ensure(layout: &Layout, slot: Slot) -> Result<()> {
    let (netns, outer) = (layout.netns(), layout.host_link());
    if !exists(layout) {
        run_args("ip", ["netns", "add", &netns]).context("failed to make the cluster's network namespace")?;
    }
    if !Path::new("/sys/class/net").join(&outer).exists() {
        run_args(
            "ip",
            [
                "link", "add", &outer, "type", "veth", "peer", "name", INNER_LINK, "netns", &netns,
            ],
        )
        .context("failed to join the cluster's network namespace to the host")?;
    }
    let inside = |arguments: &[&str]| run_args("ip", ["-netns", &netns].iter().chain(arguments));
    let (host, node) = (slot.host().to_string(), slot.node().to_string());
    run_args("ip", ["addr", "replace", &format!("{host}/30"), "dev", &outer])?;
    run_args("ip", ["link", "set", &outer, "up"])?;
    inside(&["addr", "replace", &format!("{node}/30"), "dev", INNER_LINK])?;
    inside(&["link", "set", "lo", "up"])?;
    inside(&["link", "set", INNER_LINK, "up"])?;
    inside(&["route", "replace", "default", "via", &host, "dev", INNER_LINK])?;
    for network in [slot.pods(), slot.services()] {
        // Best effort: only for people who want to look at pods from the host. `add` never replaces a route
        // that the host already has.
        let _ = run_args(
            "ip",
            ["route", "add", &network.to_string(), "via", &node, "dev", &outer],
        );
    }
    let sysctls = [
        "ipv4/ip_forward=1",
        // Replies of a Service may leave by another way than its requests came.
        "ipv4/conf/all/rp_filter=0",
        "ipv4/conf/default/rp_filter=0",
    ];
    for (key, value) in sysctls.iter().filter_map(|sysctl| sysctl.split_once('=')) {
        // /proc/sys/net shows the namespace of the process that opens it.
        run(command_in(layout, "sh").args(["-c", &format!("echo {value} > /proc/sys/net/{key}")]))
            .with_context(|| format!("failed to set net/{key} in {netns}"))?;
    }
    masquerade(layout, slot)
}

/// Pods that talk to the host appear as the node, so that replies find back even where the host lacks our route.
fn masquerade(layout: &Layout, slot: Slot) -> Result<()> {
    let pods = slot.pods().to_string();
    let rule = ["POSTROUTING", "-s", &pods, "-o", INNER_LINK, "-j", "MASQUERADE"];
    let iptables = |action: &str| {
        let mut command = command_in(layout, "iptables");
        command.args(["-w", "10", "-t", "nat", action]).args(rule);
        command
    };
    if run(&mut iptables("-C")).is_err() {
        run(&mut iptables("-A")).context("failed to masquerade what pods send to the host")?;
    }
    Ok(())
}

/// Whether the namespace is there.
pub(super) fn exists(layout: &Layout) -> bool {
    layout.netns_path().exists()
}

/// A command that will run in the cluster's network namespace. Not `ip netns exec`: that hides /sys/fs/cgroup.
pub(super) fn command_in(layout: &Layout, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    let mut flag = std::ffi::OsString::from("--net=");
    flag.push(layout.netns_path());
    command.arg(flag).arg("--").arg(program);
    command
}

/// Removes the link and the namespace. The link goes with the namespace, but only once nothing holds that.
pub(super) fn remove(layout: &Layout) -> Result<()> {
    let outer = layout.host_link();
    if Path::new("/sys/class/net").join(&outer).exists() {
        // It may vanish by itself between the check and this: the check below decides.
        let removed = run_args("ip", ["link", "delete", &outer]);
        if Path::new("/sys/class/net").join(&outer).exists() {
            removed.with_context(|| format!("failed to remove the link {outer}"))?;
        }
    }
    if exists(layout) {
        run_args("ip", ["netns", "delete", &layout.netns()])
            .context("failed to remove the network namespace")?;
    }
    Ok(())
}
