//! Bytes that leave in a steady stream instead of in bursts.
//!
//! What passes through a node comes and goes in pieces: containerd writes 1 MiB at a time, and TCP sends what its window has
//! room for as fast as the machine can. In the queue before a link the acknowledgements for what the node itself receives
//! wait behind that, or are lost with it. Paced, TCP sends a window over a round trip: Linux does it by
//! itself, without a queueing discipline for it, as soon as a rate is named that must not be exceeded (`SO_MAX_PACING_RATE`;
//! `tcp_needs_internal_pacing` in its sources, since Linux 4.13).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Bytes per second that no link carries. All bits set would mean: no limit, and no pacing. Linux before 5.1 takes the first
/// four bytes for the whole, so both halves are alike, and then it is 4.3 GB/s.
const ANY: u64 = 0xffff_fffe_ffff_fffe;

/// From now on what is sent on `socket` is spread over the round trip: at 1.2 times the rate that the window allows, and
/// at 2 times in slow start (`net.ipv4.tcp_pacing_ca_ratio`, `tcp_pacing_ss_ratio`). It cannot be undone.
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
    // Four bytes of it before Linux 5.1.
    let told = length as usize;
    rate.to_ne_bytes()[..told] == ANY.to_ne_bytes()[..told]
}
