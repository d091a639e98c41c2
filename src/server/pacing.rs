//! Bytes that leave in a steady stream instead of in bursts.
//!
//! What passes through a node comes and goes in pieces: containerd writes 1 MiB at a time, and TCP sends what its window has
//! room for as fast as the machine can. The queue before a link takes 20 ms of that, and there the acknowledgements for what
//! the node itself receives wait behind it, or are lost with it. Paced, TCP sends a window over a round trip: Linux does it by
//! itself, without a queueing discipline for it, as soon as a rate is named that must not be exceeded (`SO_MAX_PACING_RATE`;
//! net/ipv4/tcp_output.c, `tcp_needs_internal_pacing`, since Linux 4.13).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Bytes per second that no link carries. All bits set would mean: no limit, and no pacing. Linux before 4.20 takes the first
/// half of it for the whole, whichever that is, and then it is 2 GB/s.
const ANY: u64 = 0x7fff_ffff_7fff_ffff;

/// From now on what is sent on `socket` is spread over the round trip: at 1.2 times the rate that the window allows, twice that
/// while the window is still growing (`net.ipv4.tcp_pacing_ca_ratio`, `tcp_pacing_ss_ratio`). It cannot be undone.
///
/// # Errors
/// Whatever setsockopt(2) says; `ENOPROTOOPT` before Linux 3.13.
#[allow(unsafe_code)]
pub fn begin(socket: &impl AsFd) -> io::Result<()> {
    let rate = ANY;
    // SAFETY: the descriptor is borrowed, so it is open during the call, in which the kernel reads the eight bytes of `rate`
    // and keeps no pointer to them.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            std::ptr::from_ref(&rate).cast(),
            size_of_val(&rate) as libc::socklen_t,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether it has begun.
#[cfg(test)]
#[allow(unsafe_code)]
pub fn has_begun(socket: &impl AsFd) -> bool {
    let mut rate = 0_u64;
    let mut length = size_of_val(&rate) as libc::socklen_t;
    // SAFETY: as above, and the kernel writes no more than `length` bytes to `rate`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            std::ptr::from_mut(&mut rate).cast(),
            &raw mut length,
        )
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    rate == ANY
}
