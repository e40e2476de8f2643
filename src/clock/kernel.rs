//! What the kernel knows of its own clock: whether somebody keeps it right, and how far off it may be.
//!
//! `unsafe`: `adjtimex` is a C function. It only reads here, which needs no privilege, but a sandbox that shuts
//! out the setting of the clock may shut out this call too.
#![allow(unsafe_code)]

use std::io;

use nix::libc;

/// Microseconds: the kernel's bound on its error reaches this (NTP_PHASE_LIMIT) while nobody vouches for the clock.
const UNKNOWN_ERROR: libc::c_long = 16_000_000;

/// Whether the kernel counts its clock as synchronised, or a time service that leaves that flag alone (chrony without
/// `rtcsync`) has told it a bound on the error.
pub(super) fn is_synchronised() -> io::Result<bool> {
    // SAFETY: `timex` is plain numbers, for which zero is valid; `modes` of 0 asks and changes nothing.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole `timex` of ours, which outlives the call.
    if unsafe { libc::adjtimex(&mut state) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(judge(state.status, state.maxerror))
}

fn judge(status: libc::c_int, largest_error: libc::c_long) -> bool {
    status & libc::STA_UNSYNC == 0 || (0..UNKNOWN_ERROR).contains(&largest_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_flag_or_a_bound_on_the_error_counts() {
        let pll = libc::STA_PLL;
        assert!(judge(pll, 0), "systemd-timesyncd, ntpd, chrony with rtcsync");
        assert!(judge(pll | libc::STA_UNSYNC, 40_000), "chrony without rtcsync");
        assert!(!judge(libc::STA_UNSYNC, UNKNOWN_ERROR), "after a boot, or when the time was set by hand");
        assert!(!judge(pll | libc::STA_UNSYNC, UNKNOWN_ERROR), "a time service that lost its sources");
    }

    #[test]
    fn the_kernel_answers_without_any_privilege() {
        is_synchronised().unwrap();
    }
}
