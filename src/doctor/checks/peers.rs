//! Whether the others are found, and give what they say that they have.

use crate::doctor::facts::{Answer, Name};
use crate::doctor::live::{Delivery, Live, Silence};
use crate::finding::Finding;

/// Whether there is a way to the first peers.
pub fn bootstrap(names: &[Name], live: Result<&Live, &Silence>) -> Finding {
    const CHECK: &str = "bootstrap";
    let cure = "See that the name is that of the headless Service (kubectl get endpointslices), and that this pod's DNS \
                answers: with hostNetwork it needs dnsPolicy ClusterFirstWithHostNet.";
    let told = |name: &Name| match &name.leads_to {
        Ok(0) => format!("{} leads to nobody", name.name),
        Ok(1) => format!("{} leads to one address", name.name),
        Ok(n) => format!("{} leads to {n} addresses", name.name),
        Err(why) => format!("{} leads nowhere: {why}", name.name),
    };
    let all: Vec<String> = names.iter().map(told).collect();
    let seen = all.join("; ");
    let leads = |name: &&Name| matches!(name.leads_to, Ok(1..));
    let good = names.iter().filter(leads).count();
    let knows_others = live.is_ok_and(|live| live.peers.known > 0);
    if good == names.len() {
        Finding::ok(CHECK, seen)
    } else if good > 0 || knows_others {
        Finding::warning(CHECK, seen, cure)
    } else {
        Finding::broken(CHECK, seen, cure)
    }
}

/// Whether this node and the others know each other for members.
pub fn members(secrets: &Option<Answer<usize>>, live: Result<&Live, &Silence>) -> Finding {
    const CHECK: &str = "members";
    let cure = "Give all nodes the same --cluster-secret-file, or none. While a secret is replaced, each file has both, one \
                per line (docs/security.md).";
    let strangers = live.map(|live| live.strangers.clone()).unwrap_or_default();
    let knows_nobody = live.is_ok_and(|live| live.peers.known == 0);
    let how = match secrets {
        None => "the swarm is open (no --cluster-secret-file)".to_string(),
        Some(Ok(1)) => "the swarm is closed, by one secret".to_string(),
        Some(Ok(n)) => format!("the swarm is closed, by {n} secrets"),
        Some(Err(why)) => return Finding::broken(CHECK, why, cure),
    };
    match (strangers.met, strangers.called) {
        (Some(met), _) if knows_nobody => Finding::broken(
            CHECK,
            format!("{how}, and whom this node calls has no secret in common with it: {met}"),
            cure,
        ),
        (Some(met), _) => Finding::warning(
            CHECK,
            format!(
                "{how}, and somebody whom this node has called has no secret in common with it: {met}"
            ),
            cure,
        ),
        (None, Some(called)) if secrets.is_some() => Finding::warning(
            CHECK,
            format!("{how}, and somebody who has called was refused: {called}"),
            format!("{cure} If it is none of your nodes, it was rightly refused."),
        ),
        _ => Finding::ok(CHECK, how),
    }
}

/// How many peers there are.
pub fn known(names: &[Name], live: Result<&Live, &Silence>) -> Finding {
    const CHECK: &str = "peers";
    let peers = match live {
        Ok(live) => live.peers,
        Err(silence) => return Finding::skipped(CHECK, silence.to_string()),
    };
    let named = names.iter().filter_map(|name| name.leads_to.as_ref().ok());
    let named: usize = named.sum();
    match (peers.known, named) {
        // One of them is this node.
        (0, 0 | 1) => Finding::ok(
            CHECK,
            "no other node is known, and none is named: this one is alone",
        ),
        (0, named) => Finding::broken(
            CHECK,
            format!("no other node is known, though {named} addresses are named"),
            "Nodes must reach each other at the router's port (5001) and at the registry's (5000): look for a NetworkPolicy, \
             a firewall or a security group between them.",
        ),
        (known, _) => Finding::ok(
            CHECK,
            format!(
                "other nodes known: {known}, connected now: {}",
                peers.connected
            ),
        ),
    }
}

/// Whether what is advertised is given.
pub fn delivery(live: Result<&Live, &Silence>) -> Finding {
    const CHECK: &str = "delivery";
    let delivery = match live {
        Ok(live) => &live.delivery,
        Err(silence) => return Finding::skipped(CHECK, silence.to_string()),
    };
    match delivery {
        None => Finding::skipped(
            CHECK,
            "nothing was asked of other nodes, which costs traffic",
        ),
        Some(Delivery::NothingHere) => {
            Finding::skipped(CHECK, "this node has no image that others could have, too")
        }
        Some(Delivery::NothingShared { asked }) => Finding::skipped(
            CHECK,
            format!("no other node says that it has any of {asked} manifests that are here"),
        ),
        Some(Delivery::Delivered { digest, peer, ms }) => Finding::ok(
            CHECK,
            format!("{digest} came from {peer}, its first byte after {ms} ms"),
        ),
        Some(Delivery::Outdated { digest, peer }) => Finding::warning(
            CHECK,
            format!("{peer} is said to have {digest}, and does not have it"),
            "Ordinary for twenty minutes after images were removed there. If it stays, ask the doctor of that node.",
        ),
        Some(Delivery::Failed { digest, peer, why }) => Finding::broken(
            CHECK,
            format!("{peer} says that it has {digest}, and does not deliver it: {why}"),
            "Nodes must reach each other at the registry's port (5000), which must be the same on all, and with one Secret.",
        ),
    }
}
