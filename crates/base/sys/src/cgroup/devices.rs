//! Which devices a group may use: files on version 1, a small BPF program on version 2.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use super::write;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    All,
    Block,
    Char,
}

/// One rule; `None` numbers match every device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceRule {
    pub allow: bool,
    pub kind: DeviceKind,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

impl DeviceRule {
    pub fn all(allow: bool) -> DeviceRule {
        DeviceRule {
            allow,
            kind: DeviceKind::All,
            major: None,
            minor: None,
            read: true,
            write: true,
            mknod: true,
        }
    }
}

pub(super) fn restrict_v1(dir: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    for rule in rules {
        let kind = match rule.kind {
            DeviceKind::All => "a",
            DeviceKind::Block => "b",
            DeviceKind::Char => "c",
        };
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let access: String = [(rule.read, 'r'), (rule.write, 'w'), (rule.mknod, 'm')]
            .iter()
            .filter_map(|(on, letter)| on.then_some(*letter))
            .collect();
        let line = format!("{kind} {}:{} {access}", number(rule.major), number(rule.minor));
        write(dir, if rule.allow { "devices.allow" } else { "devices.deny" }, &line)?;
    }
    Ok(())
}

/// One instruction of the kernel's virtual machine.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE_IMMEDIATE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND_IMMEDIATE: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_NOT_EQUAL: u8 = 0x56;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5e;
const EXIT: u8 = 0x95;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

/// Rules are tried from the last to the first, so that the last that matches decides.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    // r2 = kind, r3 = access, r4 = major, r5 = minor
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(AND_IMMEDIATE, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 3, 1, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut tests = Vec::new();
        let kind = match rule.kind {
            DeviceKind::All => None,
            DeviceKind::Block => Some(1),
            DeviceKind::Char => Some(2),
        };
        if let Some(kind) = kind {
            tests.push(vec![instruction(JUMP_NOT_EQUAL, 2, 0, 0, kind)]);
        }
        let access = i32::from(rule.mknod) | i32::from(rule.read) << 1 | i32::from(rule.write) << 2;
        if access != 7 {
            // An allowing rule must cover all that is asked for.
            tests.push(vec![
                instruction(MOVE_REGISTER, 1, 3, 0, 0),
                instruction(AND_IMMEDIATE, 1, 0, 0, access),
                instruction(JUMP_NOT_EQUAL_REGISTER, 1, 3, 0, 0),
            ]);
        }
        if let Some(major) = rule.major {
            tests.push(vec![instruction(JUMP_NOT_EQUAL, 4, 0, 0, major as i32)]);
        }
        if let Some(minor) = rule.minor {
            tests.push(vec![instruction(JUMP_NOT_EQUAL, 5, 0, 0, minor as i32)]);
        }
        let decision = [
            instruction(MOVE_IMMEDIATE, 0, 0, 0, rule.allow.into()),
            instruction(EXIT, 0, 0, 0, 0),
        ];
        let length: usize = tests.iter().map(Vec::len).sum::<usize>() + decision.len();
        let mut position = 0;
        for mut test in tests {
            position += test.len();
            if let Some(jump) = test.last_mut() {
                jump.offset = (length - position) as i16;
            }
            code.extend(test);
        }
        code.extend(decision);
        if kind.is_none() && access == 7 && rule.major.is_none() && rule.minor.is_none() {
            // Nothing behind this point can be reached, and the kernel refuses such programs.
            return code;
        }
    }
    code.extend([instruction(MOVE_IMMEDIATE, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

pub(super) fn restrict_v2(dir: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let code = program(rules);
    let license = c"Apache-2.0";
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: `load` is the beginning of a bpf_attr for PROG_LOAD, its pointers stay valid during the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &load, std::mem::size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::other(format!(
            "loading the device filter: {}",
            io::Error::last_os_error()
        )));
    }
    // SAFETY: the kernel has just returned this descriptor to us.
    let program = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let group = File::open(dir)?;
    let attach = Attach {
        target: group.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: `attach` is the beginning of a bpf_attr for PROG_ATTACH.
    if unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &attach, std::mem::size_of::<Attach>()) } < 0 {
        return Err(io::Error::other(format!(
            "attaching the device filter to {}: {}",
            dir.display(),
            io::Error::last_os_error()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_is_tried_first_and_jumps_lead_to_the_next_rule() {
        let null = DeviceRule {
            allow: true,
            kind: DeviceKind::Char,
            major: Some(1),
            minor: Some(3),
            read: true,
            write: true,
            mknod: false,
        };
        let code = program(&[DeviceRule::all(false), null]);
        // Kind, access (3), major, minor, allow (2); deny (2).
        assert_eq!(code.len(), 6 + 1 + 3 + 1 + 1 + 2 + 2);
        assert_eq!(code[6], instruction(JUMP_NOT_EQUAL, 2, 0, 7, 2));
        assert_eq!(code[9].offset, 4);
        assert_eq!(code[10].offset, 3);
        assert_eq!(code[11].offset, 2);
        assert_eq!(code[14], instruction(MOVE_IMMEDIATE, 0, 0, 0, 0));
    }

    /// On any machine with a version 2 hierarchy, hybrid ones included: the kernel takes the program and obeys it.
    #[test]
    fn the_kernel_obeys() {
        let hierarchy = crate::mount::list()
            .unwrap()
            .into_iter()
            .find(|m| m.fs_type == "cgroup2");
        let (Some(hierarchy), true) = (hierarchy, nix::unistd::geteuid().is_root()) else {
            println!("not tested: it takes root and a version 2 hierarchy");
            return;
        };
        let group = hierarchy.target.join(format!("keelson-devices-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let allow = |major, minor, read, write| DeviceRule {
            allow: true,
            kind: DeviceKind::Char,
            major: Some(major),
            minor: Some(minor),
            read,
            write,
            mknod: false,
        };
        restrict_v2(
            &group,
            &[
                DeviceRule::all(false),
                allow(1, 3, true, true),
                allow(1, 5, true, false),
            ],
        )
        .unwrap();
        let procs = group.join("cgroup.procs");
        let script = format!(
            "echo $$ > {}; cat /dev/null && echo null; head -c1 /dev/zero >&- 2>/dev/null; \
             head -c 1 /dev/zero | wc -c; echo x > /dev/zero || echo no write; head -c 1 /dev/urandom || echo no read",
            procs.display()
        );
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        std::fs::remove_dir(&group).unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said, "null\n1\nno write\nno read\n", "{output:?}");
    }
}
