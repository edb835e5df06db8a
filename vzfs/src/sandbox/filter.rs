//! Filters of system calls as the kernel takes them: programs of classic BPF over `struct seccomp_data` (seccomp(2)).
//!
//! Written out here, as a filter must know two architectures: a process on x86-64 can make calls by i386's numbers, and 32-bit programs in VEs do.

use libc::{
    BPF_ABS, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, CLONE_THREAD, EPERM,
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SYS_clone, SYS_clone3, SYS_kill, c_long, sock_filter,
};

use super::calls::Refused;

/// Offsets in `struct seccomp_data` (linux/seccomp.h); of the first argument, the lower half.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386` (linux/audit.h).
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
/// Calls of the x32 kind are numbered from here on; with the architecture of x86-64.
const X32: u32 = 0x4000_0000;

const ALLOW: u32 = SECCOMP_RET_ALLOW;
const REFUSE: u32 = SECCOMP_RET_ERRNO | EPERM as u32;
/// As if the kernel had no such call: callers then do without.
const LACK: u32 = SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Refuses these calls and allows all others.
pub(super) fn refusing(calls: &[Refused]) -> Vec<sock_filter> {
    let of_i386: Vec<u32> = calls.iter().flat_map(|(_, numbers)| numbers.iter().copied()).collect();
    let mut program = vec![load(ARCHITECTURE)];
    // Two instructions a number, and the end.
    program.push(jump(BPF_JEQ, I386, 0, 1));
    program.push(skip(1));
    program.push(skip(2 * of_i386.len() + 2));
    program.push(load(NUMBER));
    of_i386.into_iter().for_each(|number| answer(&mut program, number, REFUSE));
    program.push(end(ALLOW));
    program.extend([load(NUMBER), jump(BPF_JGE, X32, 0, 1), end(LACK)]);
    // Calls that one of the two does not have are negative there.
    let numbers = calls.iter().filter_map(|(number, _)| u32::try_from(*number).ok());
    numbers.for_each(|number| answer(&mut program, number, REFUSE));
    program.push(end(ALLOW));
    program
}

/// Allows these calls, new threads, and signals to this process, and refuses all others.
pub(super) fn allowing(calls: &[c_long]) -> Vec<sock_filter> {
    let mut program = vec![load(ARCHITECTURE), jump(BPF_JEQ, X86_64, 1, 0), end(REFUSE), load(NUMBER)];
    let numbers = calls.iter().filter_map(|number| u32::try_from(*number).ok());
    numbers.for_each(|number| answer(&mut program, number, ALLOW));
    let mut with_argument = |number: c_long, test: sock_filter| {
        program.push(jump(BPF_JEQ, number as u32, 0, 4));
        program.extend([load(FIRST_ARGUMENT), test, end(ALLOW), end(REFUSE)]);
    };
    with_argument(SYS_clone, jump(BPF_JSET, CLONE_THREAD as u32, 0, 1));
    with_argument(SYS_kill, jump(BPF_JEQ, std::process::id(), 0, 1));
    // Its flags are in memory, where a filter does not see them; glibc then uses the other.
    answer(&mut program, SYS_clone3 as u32, LACK);
    program.push(end(REFUSE));
    program
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    // Codes have 16 bits.
    sock_filter { code: code as u16, jt, jf, k }
}

fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0)
}

/// Goes on so many instructions later, if the loaded word passes the test or not.
fn jump(test: u32, value: u32, passed: u8, failed: u8) -> sock_filter {
    instruction(BPF_JMP | test | BPF_K, value, passed, failed)
}

fn skip(instructions: usize) -> sock_filter {
    // A program has some hundred instructions.
    instruction(BPF_JMP | BPF_JA, instructions as u32, 0, 0)
}

fn end(action: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, action, 0, 0)
}

/// Ends with the action if the loaded word is this.
fn answer(program: &mut Vec<sock_filter>, number: u32, action: u32) {
    program.extend([jump(BPF_JEQ, number, 0, 1), end(action)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::calls;

    /// What a program answers: as the kernel carries it out.
    fn run(program: &[sock_filter], architecture: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut word) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let passed = match u32::from(code) & 0xf0 {
                BPF_JEQ => word == k,
                BPF_JGE => word >= k,
                _ => word & k != 0,
            };
            match u32::from(code) & 0x07 {
                BPF_LD => {
                    word = match k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        _ => argument,
                    }
                }
                BPF_RET => return k,
                _ if u32::from(code) & 0xf0 == BPF_JA => at += k as usize,
                _ => at += usize::from(if passed { jt } else { jf }),
            }
        }
    }

    #[test]
    fn what_is_refused_is_refused_by_each_of_its_numbers_and_nothing_else() {
        let program = refusing(&calls::REFUSED);
        let refused: Vec<u32> = calls::REFUSED.iter().filter_map(|(n, _)| u32::try_from(*n).ok()).collect();
        let of_i386: Vec<u32> = calls::REFUSED.iter().flat_map(|(_, n)| n.iter().copied()).collect();
        for number in 0..600 {
            let answer = |refused: &[u32]| if refused.contains(&number) { REFUSE } else { ALLOW };
            assert_eq!(run(&program, X86_64, number, 0), answer(&refused), "x86-64 {number}");
            assert_eq!(run(&program, I386, number, 0), answer(&of_i386), "i386 {number}");
            assert_eq!(run(&program, X86_64, X32 + number, 0), LACK, "x32 {number}");
        }
    }

    #[test]
    fn a_session_makes_threads_and_no_processes() {
        let program = allowing(&calls::SESSION);
        let answer = |call: c_long, argument| run(&program, X86_64, call as u32, argument);
        for call in calls::SESSION {
            assert_eq!(answer(call, 0), ALLOW, "{call}");
        }
        assert_eq!(answer(SYS_clone, CLONE_THREAD as u32 | 0x100), ALLOW);
        assert_eq!(answer(SYS_clone, libc::SIGCHLD as u32), REFUSE);
        assert_eq!(answer(SYS_clone3, 0), LACK);
        assert_eq!(answer(SYS_kill, std::process::id()), ALLOW);
        assert_eq!(answer(SYS_kill, 1), REFUSE);
        use libc::{
            SYS_execve, SYS_execveat, SYS_fork, SYS_mount, SYS_ptrace, SYS_setns, SYS_socket, SYS_vfork,
        };
        for call in
            [SYS_execve, SYS_execveat, SYS_fork, SYS_vfork, SYS_mount, SYS_setns, SYS_socket, SYS_ptrace]
        {
            assert_eq!(answer(call, 0), REFUSE, "{call}");
        }
        assert_eq!(run(&program, I386, 3, 0), REFUSE);
        assert_eq!(answer(libc::SYS_read + i64::from(X32), 0), REFUSE);
    }
}
