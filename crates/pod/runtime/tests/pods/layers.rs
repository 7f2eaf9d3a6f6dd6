//! Layers as the field makes them, odd but legal: each becomes what other runtimes make of it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keelson_sys::mount::{self, Way};
use tar::EntryType;

use crate::archives::{Stack, Tar, gzip, zstd};
use crate::support::Machine;
use crate::tests;

tests![
    compression_of_many_frames,
    five_hundred_layers_in_every_way,
    an_image_of_127_layers_runs,
    marks_hide_lower_layers_only,
    a_mark_after_many_files,
    names_links_and_attributes,
    sparse_files_of_every_form,
    what_follows_the_end_is_only_digested
];

async fn compression_of_many_frames() -> Result<()> {
    let content = "0123456789".repeat(30_000);
    let plain = Tar::new().file("a", &content).file("b", "b").end();
    let (one, two) = plain.split_at(plain.len() / 2 / 512 * 512);
    let skip = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip".to_vec();
    let forms = [
        ("plain", plain.clone()),
        ("gzip", gzip(&plain)?),
        ("two members", [gzip(one)?, gzip(two)?].concat()),
        ("zstd", zstd(&plain, 17)),
        ("a window of 128 MiB", zstd(&plain, 27)),
        (
            "chunked",
            [zstd(one, 17), skip.clone(), zstd(two, 17), skip.clone()].concat(),
        ),
        ("skipping first", [skip, zstd(&plain, 17)].concat()),
    ];
    for (name, archive) in forms {
        let mut stack = Stack::new()?;
        stack.push_as(&archive, &plain).with_context(|| name.to_owned())?;
        ensure!(fs::read_to_string(stack.mounted()?.join("a"))? == content, "{name}");
    }
    let error = Stack::new()?
        .push_as(&zstd(&plain, 31), &plain)
        .err()
        .context("2 GiB of window")?;
    ensure!(format!("{error:#}").contains("zstd"), "{error:#}");
    Ok(())
}

async fn five_hundred_layers_in_every_way() -> Result<()> {
    for length in [8, 200] {
        let dir = std::env::temp_dir().join(format!("keelson-{}-{}", std::process::id(), "d".repeat(length)));
        let lowers: Vec<PathBuf> = (0..mount::MOST_LAYERS)
            .map(|i| dir.join(format!("{i:032x}/fs")))
            .collect();
        for (i, lower) in lowers.iter().enumerate() {
            fs::create_dir_all(lower)?;
            fs::write(lower.join(format!("f{i}")), "")?;
        }
        let (upper, work, target) = (dir.join("upper"), dir.join("work"), dir.join("target"));
        for dir in [&upper, &work, &target] {
            fs::create_dir_all(dir)?;
        }
        let upper = Some((upper.as_path(), work.as_path()));
        for count in [127, mount::MOST_LAYERS] {
            let lowers = &lowers[..count];
            let check = |what: &str| -> Result<()> {
                let seen = fs::read_dir(&target)?.count();
                mount::unmount(&target)?;
                ensure!(seen == count, "{seen} of {count} {what}, names of {length}");
                Ok(())
            };
            mount::overlay(lowers, upper, &target)?;
            check("as it chooses")?;
            mount::overlay(lowers, None, &target)?;
            check("read-only")?;
            mount::overlay_by(Way::Links, lowers, upper, &target)?;
            check("by links")?;
            match mount::overlay_by(Way::Calls, lowers, upper, &target) {
                Ok(()) => check("by calls")?,
                // Before Linux 6.7.
                Err(e) => ensure!(e.raw_os_error() == Some(nix::libc::EINVAL), "{e}"),
            }
        }
        let more: Vec<PathBuf> = lowers.iter().chain(&lowers[..1]).cloned().collect();
        ensure!(mount::overlay(&more, upper, &target).is_err(), "501 layers");
        ensure!(!dir.join("target.links").exists(), "links are left");
        fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

async fn an_image_of_127_layers_runs() -> Result<()> {
    let machine = Machine::new().await?;
    let mut layers = vec![crate::support::base_layer()?];
    layers.extend((1..127).map(|i| Tar::new().file(&format!("f{i}"), "").end()));
    let archive = machine.dir.join("many.tar");
    let name = "registry.example/test/many:1";
    fs::write(&archive, crate::support::image_archive(name, &layers)?)?;
    let mut client = machine.cri.image.clone();
    client.pull_image(keelson_runtime::import_request(&archive)).await?;
    let mut container = crate::support::script("c", "ls / | grep -c '^f[0-9]'; echo written >/f1; cat /f1");
    container.image = Some(keelson_cri::v1::ImageSpec {
        image: name.into(),
        ..Default::default()
    });
    let (log, status) = machine.shell(&machine.pod("many"), container).await?;
    ensure!(log == "126\nwritten\n", "{log} {status:?}");
    machine.assert_clean()?;
    layers.extend((127..=500).map(|i| Tar::new().file(&format!("f{i}"), "").end()));
    fs::write(&archive, crate::support::image_archive(name, &layers)?)?;
    let refused = client.pull_image(keelson_runtime::import_request(&archive)).await;
    let refused = refused.err().context("an image of 501 layers came in")?;
    ensure!(refused.message().contains("the kernel stacks 500"), "{refused}");
    Ok(())
}

async fn marks_hide_lower_layers_only() -> Result<()> {
    let mut stack = Stack::new()?;
    // In the lowest layer there is nothing to hide, wherever the marks stand.
    stack.push(
        &Tar::new()
            .files(&[
                "f",
                ".wh.f",
                "gone",
                "e/old",
                "e/sub/old",
                "e/.wh..wh..opq",
                "d/own",
                "l/y",
                "both/old",
                ".wh.x",
            ])
            .end(),
    )?;
    ensure!(
        stack.paths()?
            == [
                "both",
                "both/old",
                "d",
                "d/own",
                "e",
                "e/old",
                "e/sub",
                "e/sub/old",
                "f",
                "gone",
                "l",
                "l/y"
            ],
        "{:?}",
        stack.paths()?
    );
    stack.push(
        &Tar::new()
            // Both orders of a file and its mark.
            .files(&["f", ".wh.f", ".wh.gone", "gone"])
            // A mark in between, and a directory that both layers have, never named by itself.
            .files(&["e/new", "e/sub/new", "e/.wh..wh..opq", "e/newer"])
            .files(&["both/new", ".wh.both"])
            // A link makes the lower layer's file one of this layer, and its mark still hides it.
            .link(EntryType::Link, "l/x", "l/y")
            .file("l/.wh.y", "")
            .file(".wh.d", "")
            .file(".wh.never", "")
            .end(),
    )?;
    ensure!(
        stack.paths()?
            == [
                "both",
                "both/new",
                "e",
                "e/new",
                "e/newer",
                "e/sub",
                "e/sub/new",
                "f",
                "gone",
                "l",
                "l/x"
            ],
        "{:?}",
        stack.paths()?
    );
    ensure!(
        fs::read_to_string(stack.mounted()?.join("l/x"))? == "l/y",
        "the link's content"
    );
    // A mark behind a link of a lower layer finds what is behind it.
    let mut stack = Stack::new()?;
    stack.push(
        &Tar::new()
            .files(&["usr/lib/a", "usr/lib/b"])
            .link(EntryType::Symlink, "lib", "usr/lib")
            .end(),
    )?;
    stack.push(
        &Tar::new()
            .file("lib/c", "")
            .file("lib/.wh.a", "")
            .file("lib/.wh.c", "")
            .end(),
    )?;
    ensure!(
        stack.paths()? == ["lib", "usr", "usr/lib", "usr/lib/b", "usr/lib/c"],
        "{:?}",
        stack.paths()?
    );
    for bad in [".wh.", ".wh..", ".wh..."] {
        ensure!(stack.push(&Tar::new().file(bad, "").end()).is_err(), "{bad}");
    }
    // What aufs kept for itself is nobody's.
    let mut stack = Stack::new()?;
    stack.push(
        &Tar::new()
            .dir(".wh..wh.plnk")
            .file(".wh..wh.plnk/1.2", "x")
            .file(".wh..wh.aufs", "")
            .file("a", "")
            .end(),
    )?;
    ensure!(stack.paths()? == ["a"], "{:?}", stack.paths()?);
    Ok(())
}

/// Looking at each file for each file took minutes.
async fn a_mark_after_many_files() -> Result<()> {
    const FILES: usize = 20_000;
    let mut took = Vec::new();
    for mark in [None, Some("e/.wh..wh..opq")] {
        let mut stack = Stack::new()?;
        stack.push(&Tar::new().file("e/old", "").end())?;
        let mut tar = Tar::new();
        for i in 0..FILES {
            tar = tar.file(&format!("e/{i}"), "");
        }
        let plain = mark
            .into_iter()
            .fold(tar, |tar, mark| tar.file(mark, ""))
            .file("e/newer", "")
            .end();
        let began = Instant::now();
        stack.push(&plain)?;
        took.push(began.elapsed());
        let paths = FILES + if mark.is_some() { 2 } else { 3 };
        ensure!(stack.paths()?.len() == paths, "{} paths", stack.paths()?.len());
    }
    ensure!(
        took[1] < took[0] * 3 + Duration::from_secs(3),
        "{took:?} without and with a mark"
    );
    Ok(())
}

async fn names_links_and_attributes() -> Result<()> {
    let long = format!("long/{}", "n".repeat(250));
    let mut set_uid = Tar::header("suid", EntryType::Regular, 0o4755, 0);
    set_uid.set_uid(1234);
    set_uid.set_cksum();
    let mut stack = Stack::new()?;
    stack.push(
        &Tar::new()
            .dir("./")
            .file("./g/../h", "h")
            .file("../../up", "")
            .file("/abs", "")
            .pax(&[("path", long.as_bytes())])
            .file("short", "long")
            .pax(&[("uid", b"1000640000"), ("mtime", b"7258118400.25")])
            .file("late", "")
            .pax(&[("mtime", b"-2177452800")])
            .file("early", "")
            .pax(&[("mtime", b"16725225600")])
            .file("too-late", "")
            .pax(&[("mtime", b"5000000000"), ("atime", b"6000000000")])
            .dir("timed")
            .file("timed/inside", "")
            .pax(&[("SCHILY.xattr.user.x", b"a\nb\0c")])
            .file("attributed", "")
            .pax(&[("SCHILY.xattr.user.x", b"1")])
            .link(EntryType::Symlink, "symlink", "nowhere")
            .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")])
            .dir("trusted")
            .pax(&[(
                "SCHILY.xattr.security.capability",
                b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            )])
            .file("capable", "")
            .raw(&set_uid, &[])
            .raw(&Tar::header("closed", EntryType::Directory, 0, 0), &[])
            .file("closed/inside", "")
            .link(EntryType::Link, "a/b/c", "h")
            .raw(&Tar::header("fifo", EntryType::Fifo, 0o600, 0), &[])
            .raw(&Tar::header("ustar-dir/", EntryType::Regular, 0o755, 0), &[])
            .link(EntryType::Symlink, "lib64", "usr/lib64")
            .file("usr/lib64/x", "")
            .end(),
    )?;
    stack.push(&Tar::new().dir("lib64").file("lib64/y", "").end())?;
    let root = stack.mounted()?;
    let meta = |path: &str| fs::symlink_metadata(root.join(path)).with_context(|| path.to_owned());
    ensure!(
        fs::read_to_string(root.join("h"))? == "h" && meta("g").is_err(),
        "a path with .."
    );
    ensure!(meta("up").is_ok() && meta("abs").is_ok(), "paths from the root");
    ensure!(fs::read_to_string(root.join(&long))? == "long", "a long name");
    let late = meta("late")?;
    ensure!(
        (late.uid(), late.mtime(), late.mtime_nsec()) == (1_000_640_000, 7_258_118_400, 250_000_000),
        "{late:?}"
    );
    // As containerd: what it cannot set, it sets to 1970.
    ensure!(
        meta("early")?.mtime() == 0 && meta("too-late")?.mtime() == 0,
        "times out of bounds"
    );
    let timed = meta("timed")?;
    ensure!(
        (timed.mtime(), timed.atime()) == (5_000_000_000, 6_000_000_000),
        "{timed:?}"
    );
    ensure!(
        meta("suid")?.mode() & 0o7777 == 0o4755 && meta("suid")?.uid() == 1234,
        "set-user-ID"
    );
    ensure!(
        meta("closed")?.mode() & 0o7777 == 0 && meta("closed/inside").is_ok(),
        "a closed directory"
    );
    ensure!(
        meta("a/b/c")?.ino() == meta("h")?.ino() && meta("a/b")?.mode() & 0o777 == 0o755,
        "a link"
    );
    ensure!(meta("fifo")?.file_type().is_fifo(), "a fifo");
    ensure!(
        meta("lib64")?.is_dir() && meta("lib64/y").is_ok() && meta("lib64/x").is_err(),
        "a replaced link"
    );
    ensure!(meta("usr/lib64/y").is_err(), "it followed a link that it replaced");
    let attribute = |path: &str, name: &str| keelson_sys::path::xattr(&root.join(path), name.as_ref());
    ensure!(
        attribute("attributed", "user.x")?.as_deref() == Some(&b"a\nb\0c"[..]),
        "an attribute"
    );
    ensure!(attribute("capable", "security.capability")?.is_some(), "a capability");
    ensure!(
        attribute("trusted", "trusted.overlay.opaque")?.is_none(),
        "the overlay's own attribute"
    );
    Ok(())
}

async fn sparse_files_of_every_form() -> Result<()> {
    let (hole, size) = (1 << 20, (1 << 20) + 3);
    let wanted: Vec<u8> = [&b"one"[..], &vec![0; hole - 3], b"two"].concat();
    let header = |name: &str, kind: EntryType, size: usize| Tar::header(name, kind, 0o644, size);
    let mut old = header("old", EntryType::GNUSparse, 6);
    {
        let gnu = old.as_gnu_mut().context("a GNU header")?;
        let octal = |field: &mut [u8; 12], n: usize| field.copy_from_slice(format!("{n:011o}\0").as_bytes());
        for (i, (offset, length)) in [(0, 3), (hole, 3)].into_iter().enumerate() {
            octal(&mut gnu.sparse[i].offset, offset);
            octal(&mut gnu.sparse[i].numbytes, length);
        }
        octal(&mut gnu.realsize, size);
    }
    old.set_cksum();
    let number = |n: usize| n.to_string();
    let map = format!("0,3,{hole},3");
    let before = format!("2\n0\n3\n{hole}\n3\n");
    let mut block = before.into_bytes();
    block.resize(512, 0);
    block.extend_from_slice(b"onetwo");
    let plain = Tar::new()
        .raw(&old, b"onetwo")
        .pax(&[
            ("GNU.sparse.size", number(size).as_bytes()),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", number(hole).as_bytes()),
            ("GNU.sparse.numbytes", b"3"),
        ])
        .raw(&header("zero", EntryType::Regular, 6), b"onetwo")
        .pax(&[
            ("GNU.sparse.size", number(size).as_bytes()),
            ("GNU.sparse.map", map.as_bytes()),
            ("GNU.sparse.name", b"one"),
        ])
        .raw(&header("GNUSparseFile.0/one", EntryType::Regular, 6), b"onetwo")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"posix"),
            ("GNU.sparse.realsize", number(size).as_bytes()),
        ])
        .raw(
            &header("GNUSparseFile.0/posix", EntryType::Regular, block.len()),
            &block,
        )
        .file("after", "after")
        .end();
    let mut stack = Stack::new()?;
    stack.push(&plain)?;
    ensure!(
        stack.paths()? == ["after", "old", "one", "posix", "zero"],
        "{:?}",
        stack.paths()?
    );
    let root = stack.mounted()?;
    for name in ["old", "zero", "one", "posix"] {
        ensure!(fs::read(root.join(name))? == wanted, "{name}");
        ensure!(fs::metadata(root.join(name))?.blocks() < 1024, "{name} has no hole");
    }
    // Maps that leave their file, overlap, or promise more than there is.
    for map in ["0,3,2,3", "0,3,1048576,4", "0,600", "0", "0,3,18446744073709551615,3"] {
        let bad = Tar::new()
            .pax(&[
                ("GNU.sparse.size", number(size).as_bytes()),
                ("GNU.sparse.map", map.as_bytes()),
            ])
            .raw(&header("bad", EntryType::Regular, 6), b"onetwo")
            .end();
        ensure!(Stack::new()?.push(&bad).is_err(), "{map}");
    }
    Ok(())
}

async fn what_follows_the_end_is_only_digested() -> Result<()> {
    let mut plain = Tar::new().file("a", "a").end();
    plain.extend_from_slice(b"garbage, and a lot of it");
    for archive in [plain.clone(), gzip(&plain)?] {
        let mut stack = Stack::new()?;
        stack.push_as(&archive, &plain)?;
        ensure!(stack.paths()? == ["a"]);
        // The same layer again is another place in the stack.
        stack.push_as(&archive, &plain)?;
        ensure!(stack.paths()? == ["a"]);
        let mut changed = plain.clone();
        changed.push(b'!');
        ensure!(stack.push_as(&archive, &changed).is_err(), "another digest was taken");
    }
    Ok(())
}
