//! Who means harm: strangers and members of an open swarm against whole Peilis.
//!
//! Hostile nodes are real libp2p with a store that lies and streams of raw bytes (`liar`); hostile registries are sockets that
//! say anything (`registry`). What may not be knocked at stands in a network namespace of its own, with somebody who counts
//! (`place`). What honest faults do is in tests/faults; the door of a closed swarm in tests/members.rs; a large blob with wrong
//! bytes in tests/flash_crowd.rs.

mod addresses;
mod bodies;
#[allow(dead_code, reason = "each test uses its part of the lab")]
#[path = "../lab/mod.rs"]
mod lab;
mod liar;
mod messages;
#[allow(dead_code, reason = "each test uses its part")]
#[path = "../nodes/mod.rs"]
mod nodes;
mod place;
mod pull;
mod records;
mod registry;
mod rendezvous;
mod tags;
mod whole;
