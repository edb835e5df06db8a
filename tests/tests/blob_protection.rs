//! A VE cannot write into a blob, whatever way it opens the file.
//!
//! For a passthrough file the kernel opens the backing path anew with the caller's flags, so that a mistake here would
//! let one VE write into what all the others read.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use vzfs_tests::Host;
use vzfs_tests::host::host_sh;

fn host() -> (Host, String) {
    let host = Host::with_sample(&["evil", "victim"]);
    let before = blob_sums(&host);
    (host, before)
}

/// Checksums of every blob, read from the disk's cache as any VE would.
fn blob_sums(host: &Host) -> String {
    let script =
        "cd \"$1\" && find . -type f ! -path './tmp/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
    host_sh(script, [host.store().join("blobs")]).text()
}

fn data(host: &Host, ve: &str) -> PathBuf {
    host.root(ve).join("var/lib/app/data")
}

#[test]
fn writes_of_every_kind_leave_the_blobs_alone() {
    let (host, before) = host();
    let victim = fs::read(data(&host, "victim")).expect("read");
    let path = data(&host, "evil");

    // While another descriptor reads it, and again from another VE: the kernel then has the blob as backing file.
    let reader = File::open(&path).expect("open");
    let other = File::open(data(&host, "victim")).expect("open");
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 0).expect("read");
    other.read_exact_at(&mut byte, 0).expect("read");

    let mut file = File::options().read(true).write(true).open(&path).expect("open for writing");
    file.write_all(b"overwritten").expect("write");
    file.seek(SeekFrom::Start(2_000_000)).expect("seek");
    file.write_all(b"overwritten").expect("write");
    file.set_len(2_500_000).expect("truncate");
    let mut file = File::options().append(true).open(&path).expect("open for appending");
    file.write_all(b"appended").expect("append");
    File::options().write(true).truncate(true).open(&path).expect("open with O_TRUNC");
    fs::write(&path, "short").expect("write");
    let synced =
        File::options().write(true).custom_flags(libc::O_SYNC).open(&path).expect("open with O_SYNC");
    synced.write_all_at(b"sync", 0).expect("write");

    assert_eq!(fs::read(data(&host, "victim")).expect("read"), victim);
    assert_eq!(blob_sums(&host), before);
    host.vzfs(["template", "verify", "sample"]).ok();
}

#[test]
fn shared_writable_mappings_leave_the_blobs_alone() {
    let (host, before) = host();
    let victim = fs::read(data(&host, "victim")).expect("read");
    let script = r#"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 0)
m[0:6] = b"mapped"
m[1000000:1000006] = b"mapped"
m.flush()
m.close()
"#;
    host_sh("python3 -c \"$1\" \"$2\"", [script.as_ref(), data(&host, "evil").as_os_str()]);
    assert!(fs::read(data(&host, "evil")).expect("read").starts_with(b"mapped"));
    assert_eq!(fs::read(data(&host, "victim")).expect("read"), victim);
    assert_eq!(blob_sums(&host), before);
}

#[test]
fn a_descriptor_opened_for_reading_cannot_be_made_writable() {
    let (host, before) = host();
    let path = data(&host, "evil");
    let reader = File::open(&path).expect("open");
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 0).expect("read");
    assert!(reader.write_at(b"x", 0).is_err(), "a descriptor opened for reading has written");
    // Opened again through /proc, with other flags: allowed to root, but it must reach a private copy, not the blob.
    let again = format!("/proc/self/fd/{}", reader.as_raw_fd());
    if let Ok(writer) = File::options().write(true).open(again) {
        let _ = writer.write_at(b"through /proc", 0);
        let _ = writer.set_len(7);
    }
    host_sh("fallocate -p -o 0 -l 4096 \"$1\" || true; fallocate -z -o 8192 -l 4096 \"$1\" || true", [&path]);
    assert_eq!(blob_sums(&host), before);
    assert_eq!(fs::metadata(data(&host, "victim")).expect("stat").len(), 3_000_000);
}

#[test]
fn attributes_of_blobs_are_out_of_reach() {
    let (host, before) = host();
    let metadata =
        "cd \"$1\" && find . -type f -printf '%P %m %U %G %s %T@\\n' | LC_ALL=C sort; getfattr -R -d -m - .";
    let blobs = [host.store().join("blobs")];
    let attributes = host_sh(metadata, &blobs).text();
    let script = "cd \"$1\"; chmod 0777 data; chown 1:2 data; touch -d 2001-01-01 data; setfattr -n user.x -v y data; \
                  truncate -s 10 data; rm data";
    host_sh(script, [host.root("evil").join("var/lib/app")]);
    assert_eq!(host_sh(metadata, &blobs).text(), attributes);
    assert_eq!(blob_sums(&host), before);
}
