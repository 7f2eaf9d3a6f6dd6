//! Layers as nobody should make them: each is an error of its own and leaves nothing. And the cells they are read in.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keelson_sys::mount;
use tar::EntryType;

use crate::archives::{Stack, Tar, gzip, zstd};
use crate::tests;

tests![
    bombs_are_refused,
    damaged_layers_leave_nothing,
    a_cell_sees_nothing_and_dies_with_its_parent,
    what_a_cell_costs
];

async fn bombs_are_refused() -> Result<()> {
    let zeros = |n: usize| vec![b'a'; n];
    let sized = |kind: EntryType, size: u64| {
        let mut header = Tar::header("x", kind, 0o644, 0);
        header.set_size(size);
        header.set_cksum();
        header
    };
    let header_of = |kind: EntryType, content: usize| {
        let mut bytes = sized(kind, content as u64).as_bytes().to_vec();
        bytes.extend(zeros(content));
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let forms: Vec<(&str, Vec<u8>, &str)> = vec![
        ("an extended header", header_of(EntryType::XHeader, 4 << 20), "1 MiB"),
        ("a long name", header_of(EntryType::GNULongName, 4 << 20), "1 MiB"),
        ("a long link", header_of(EntryType::GNULongLink, 4 << 20), "1 MiB"),
        (
            "a size that is not there",
            sized(EntryType::Regular, 1 << 40).as_bytes().to_vec(),
            "end of file",
        ),
        (
            "an unknown kind",
            Tar::new().raw(&sized(EntryType::new(b'Z'), 0), &[]).end(),
            "unknown kind",
        ),
        ("no archive", b"<html>".repeat(1000), "no tar archive"),
    ];
    for (name, plain, why) in forms {
        for archive in [plain.clone(), gzip(&plain)?, zstd(&plain, 20)] {
            let mut stack = Stack::new()?;
            let error = stack.push_as(&archive, &plain).err().with_context(|| name.to_owned())?;
            ensure!(format!("{error:#}").contains(why), "{name}: {error:#}");
            ensure!(
                fs::read_dir(stack.dir.join("ingest"))?.count() == 0,
                "{name} left something"
            );
        }
    }
    Ok(())
}

/// A small generator of numbers from a seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

async fn damaged_layers_leave_nothing() -> Result<()> {
    let seed: u64 = match std::env::var("SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_nanos() as u64,
    };
    println!("    SEED={seed}");
    let mut numbers = Numbers(seed);
    let good = Tar::new()
        .dir("d")
        .files(&["d/a", "d/.wh.b", "d/.wh..wh..opq"])
        .link(EntryType::Symlink, "out", "../../../../../../../etc")
        .link(EntryType::Link, "hard", "d/a")
        .pax(&[("path", b"p/q/r"), ("SCHILY.xattr.user.x", b"y"), ("mtime", b"1.5")])
        .file("x", "content")
        .file("out/passwd", "never outside")
        .end();
    let forms = [good.clone(), gzip(&good)?, zstd(&good, 17)];
    let passwd = fs::read("/etc/passwd")?;
    let mut stack = Stack::new()?;
    stack.push(&Tar::new().files(&["d/a", "d/b"]).end())?;
    let below: BTreeMap<_, _> = stack.paths()?.into_iter().map(|p| (p, ())).collect();
    for round in 0..150 {
        let mut bytes = forms[numbers.below(forms.len())].clone();
        for _ in 0..=numbers.below(6) {
            let at = numbers.below(bytes.len());
            match numbers.below(4) {
                0 => bytes[at] = numbers.below(256) as u8,
                1 => bytes[at] ^= 1 << numbers.below(8),
                2 => bytes.truncate(at + 1),
                _ => {
                    let end = (at + numbers.below(600)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = numbers.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
            }
        }
        // A header whose sum is right gets further.
        if round % 2 == 0 && bytes.len() > 512 && bytes[0] != 0x1f && bytes[0] != 0x28 {
            for block in bytes.chunks_exact_mut(512) {
                if &block[257..262] == b"ustar" {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        // Whatever comes out of it is not what was promised, or it is the good one.
        let _verdict = stack.push_as(&bytes, &good);
        stack.diff_ids.truncate(1);
        ensure!(fs::read("/etc/passwd")? == passwd, "round {round} of seed {seed}");
        ensure!(
            fs::read_dir(stack.dir.join("ingest"))?.count() == 0,
            "round {round} of seed {seed}"
        );
        let now: BTreeMap<_, _> = stack.paths()?.into_iter().map(|p| (p, ())).collect();
        ensure!(now == below, "round {round} of seed {seed} changed the layer below");
    }
    Ok(())
}

async fn a_cell_sees_nothing_and_dies_with_its_parent() -> Result<()> {
    let mut stack = Stack::new()?;
    stack.push(&Tar::new().file("below", "").end())?;
    let (upper, work, fifo) = (stack.dir.join("upper"), stack.dir.join("w"), stack.dir.join("fifo"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    let task = serde_json::json!({
        "upper": upper, "work": work, "below": stack.layers.directories(&stack.diff_ids), "length": 1 << 30,
        "limits": {"bytes": 1 << 30, "files": 100}, "seconds": [60, 600], "parent": 4_294_967_295u32,
    });
    // A shell whose child the cell is; nothing ever comes through the pipe.
    let script = r#"t=$(echo "$TASK" | sed "s/4294967295/$$/"); "$CELL" cell "$t" <>"$FIFO" >"$OUT"; true"#;
    let mut shell = std::process::Command::new(crate::support::busybox())
        .args(["sh", "-c", script])
        .env("TASK", task.to_string())
        .env("CELL", std::env::current_exe()?)
        .env("FIFO", &fifo)
        .env("OUT", stack.dir.join("out"))
        .spawn()?;
    let shell_pid = shell.id();
    let cell = wait_for("a confined cell", || {
        let children = fs::read_to_string(format!("/proc/{shell_pid}/task/{shell_pid}/children")).ok()?;
        let pid = children.split_whitespace().next()?.to_owned();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.contains("Seccomp:\t2").then_some((pid, status))
    });
    let result = cell.and_then(|(pid, status)| {
        let has = |line: &str| status.lines().any(|l| l == line);
        // chown, dac_override, fowner, fsetid, mknod, setfcap
        ensure!(
            has("CapEff:\t000000008800001b") && has("CapBnd:\t000000008800001b"),
            "{status}"
        );
        ensure!(has("NoNewPrivs:\t1") && has("Threads:\t1"), "{status}");
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
        let mut targets: Vec<&str> = mounts.lines().filter_map(|l| l.split(' ').nth(4)).collect();
        targets.sort_unstable();
        ensure!(targets == ["/", "/root", "/upper"], "{mounts}");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        for (name, most) in [
            ("Max open files", "64"),
            ("Max cpu time", "60"),
            ("Max core file size", "0"),
        ] {
            ensure!(
                limits
                    .lines()
                    .any(|l| l.starts_with(name) && l.split_whitespace().any(|w| w == most)),
                "{limits}"
            );
        }
        ensure!(
            !limits
                .lines()
                .any(|l| l.starts_with("Max address space") && l.contains("unlimited")),
            "{limits}"
        );
        let own = fs::read_link("/proc/self/ns/net")?;
        ensure!(
            fs::read_link(format!("/proc/{pid}/ns/net"))? != own,
            "the machine's network"
        );
        let mut open = Vec::new();
        for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
            open.push(fs::read_link(fd?.path())?.to_string_lossy().into_owned());
        }
        // The archive twice, the answer, nothing to complain to, the two directories; no way out.
        ensure!(open.len() <= 7, "{open:?}");
        ensure!(open.iter().all(|f| !f.starts_with("/etc") && f != "/tmp"), "{open:?}");
        Ok(pid)
    });
    shell.kill()?;
    shell.wait()?;
    let pid = result?;
    wait_for("the cell's end", || {
        (!Path::new(&format!("/proc/{pid}/ns/net")).exists()).then_some(())
    })?;
    // Its mounts went with it.
    ensure!(mount::below(&work)?.is_empty(), "{:?}", mount::below(&work)?);
    Ok(())
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A cell's start must not be what a pull consists of.
async fn what_a_cell_costs() -> Result<()> {
    let mut stack = Stack::new()?;
    stack.push(&Tar::new().file("a", "").end())?;
    let began = Instant::now();
    for i in 0..10 {
        stack.push(&Tar::new().file(&format!("f{i}"), "").end())?;
    }
    let each = began.elapsed() / 10;
    let content = "0123456789abcdef".repeat(1 << 16);
    let plain = (0..16)
        .fold(Tar::new(), |tar, i| tar.file(&format!("big{i}"), &content))
        .end();
    let began = Instant::now();
    stack.push(&plain)?;
    let rate = plain.len() as f64 / 1e6 / began.elapsed().as_secs_f64();
    println!("    a small layer: {each:?}; {rate:.0} MB/s of plain archive");
    ensure!(each < Duration::from_secs(2), "{each:?} for a small layer");
    Ok(())
}
