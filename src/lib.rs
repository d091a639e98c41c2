//! Peili, a stateless image mirror for Kubernetes nodes.
//!
//! A node-local daemon that serves the images which containerd already holds on its node to the other nodes, finds
//! theirs in a Kademlia DHT, and stands in front of every registry as containerd's mirror.
//!
//! Who may know whom (a test, `tests/imports.rs`, reads every import and holds the house to this):
//!
//! ```text
//!                          main
//!            ┌──────────────┼───────────────┐
//!        commands  doctor  app            config          PROCESS   may name anything below
//! ───────────┼──────────────┼─────────────────────────────
//!            │        registry   admin                     EDGES     HTTP in: containerd, peers, kubelet, Prometheus
//!            │        ┌──┴───┐
//!            │     mirror  advertise                       FLOWS     what we do, in terms of the seams
//! ───────────┼────────┼────┬─┴──────┬─────────────────────
//!            │     routing │     content                   SEAMS     two traits: what we need of the world
//!            │        ▲    │        ▲
//!   hosts, try_pull, │     │        │
//!          inflight kad    │    containerd, layout         ADAPTERS  one foreign thing each
//! ───────────┴────────┴────┴────────┴─────────────────────
//!                          oci                             WORDS     no IO, no clock, no async
//!    beside the stack: basic_auth, finding, http_get, membership, metrics, node_token, private_file, readiness, recent,
//!      regular_file, server, shutdown, telemetry, tls
//! ```
//!
//! The four flows: [`advertise`] keeps what the cluster is told equal to what the node holds; [`registry`] and
//! [`mirror`] answer containerd from here or from a peer; [`app`] starts and ends the process in an order that never
//! makes a pull worse than it would be without us. `docs/architecture.md` tells them at length.

pub mod admin;
pub mod advertise;
pub mod app;
pub mod basic_auth;
pub mod commands;
pub mod config;
pub mod content;
pub mod doctor;
pub mod finding;
pub mod hosts;
pub mod http_get;
pub mod inflight;
pub mod membership;
pub mod metrics;
pub mod mirror;
pub mod node_token;
pub mod oci;
pub mod private_file;
pub mod readiness;
pub mod recent;
pub mod registry;
pub mod regular_file;
pub mod routing;
pub mod server;
pub mod shutdown;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tls;
pub mod try_pull;
