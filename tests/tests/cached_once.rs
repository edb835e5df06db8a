//! Content that many VEs show is in memory once, however they use it: read, mapped, executed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use vzfs_tests::host::{host_sh, run};
use vzfs_tests::measure::{field_bytes, report};
use vzfs_tests::{Host, Setup};

const VES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
/// What each of them reads, in two files.
const CONTENT_BYTES: u64 = 500_000_000;
const FILES: [&str; 2] = ["opt/read", "opt/mapped"];
const PROGRAM: &str = "opt/program";
const MAP: &str = "import mmap, sys
with open(sys.argv[1], 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
    sum(pages[at] for at in range(0, len(pages), 4096))";

/// The machine's page cache, in bytes.
fn cached() -> u64 {
    let memory = fs::read_to_string("/proc/meminfo").expect("readable");
    field_bytes(memory.lines(), "Cached").expect("as proc_meminfo(5) has it")
}

fn host() -> Host {
    let host = Host::with(Setup { size_mib: 3072, ..Setup::default() });
    // Or each page that is read would be in memory once more, as a page of the image.
    host_sh("losetup --direct-io=on \"$(findmnt --noheadings --output SOURCE \"$1\")\"", [host.disk()]);
    let source = host.scratch().join("source");
    vzfs_tests::sample::make(&source);
    fs::create_dir_all(source.join("opt")).expect("made");
    for file in FILES {
        let mut random = File::open("/dev/urandom").expect("there").take(CONTENT_BYTES / FILES.len() as u64);
        let mut file = File::create(source.join(file)).expect("made");
        io::copy(&mut random, &mut file).expect("written");
    }
    fs::copy("/bin/bash", source.join(PROGRAM)).expect("copied");
    host.vzfs(["template", "import", "large@1", source.to_str().expect("text")]).ok();
    fs::remove_dir_all(&source).expect("removed");
    host.mounted("large", &VES);
    host
}

/// Uses the files of one VE in two ways.
fn use_files(root: &Path) {
    let read = io::copy(&mut File::open(root.join(FILES[0])).expect("opens"), &mut io::sink());
    assert_eq!(read.expect("reads"), CONTENT_BYTES / 2);
    run(Command::new("python3").args(["-c", MAP]).arg(root.join(FILES[1])));
}

#[test]
fn what_eight_ves_read_and_map_is_in_memory_once() {
    let host = host();
    host_sh("sync; echo 3 >/proc/sys/vm/drop_caches", [""; 0]);
    let mut last = cached();
    let [first, others @ ..] = VES.map(|ve| {
        use_files(&host.root(ve));
        let now = cached();
        now.saturating_sub(std::mem::replace(&mut last, now))
    });
    report("bytes that came to the page cache with the first VE", first);
    report("and with each of seven others", format!("{others:?}"));
    // Other processes of the machine may read and write meanwhile, but not beside most of the VEs as much as that.
    assert!(
        (CONTENT_BYTES / 10 * 9..CONTENT_BYTES / 10 * 18).contains(&first),
        "it reads from the disk: {first}"
    );
    assert!(middle(others) < CONTENT_BYTES / 10, "they find it in memory: {others:?}");
    executed_pages_are_shared(&host);
}

/// A program that waits for its input to end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn middle(mut numbers: [u64; 7]) -> u64 {
    numbers.sort_unstable();
    numbers[3]
}

fn executed_pages_are_shared(host: &Host) {
    let running = VES.map(|ve| {
        let program = host.root(ve).join(PROGRAM);
        assert!(fs::metadata(&program).expect("there").permissions().mode() & 0o111 != 0);
        let mut command = Command::new(program);
        command.args(["-c", "echo; read"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        // It has executed most of what it needs when it says something.
        let said = child.stdout.as_mut().expect("piped").read_exact(&mut [0]);
        said.expect("it says something");
        Running(child)
    });
    let [mut resident, mut share] = [0, 0];
    for Running(child) in &running {
        let (rss, pss) = executable_pages(child.id());
        assert!(rss >= 200_000, "{rss} bytes of the program's code are in memory");
        resident += rss;
        share += pss;
    }
    report("bytes of code of a program that runs in eight VEs, as each sees it", resident);
    report("the same, shared ones divided by who shares them", share);
    // Not all eight have touched the same pages.
    assert!(share * 4 < resident, "{share} of {resident}");
}

/// The pages of its own code that a process has in memory, in bytes, and its share of them (proc_pid_smaps(5)).
fn executable_pages(pid: u32) -> (u64, u64) {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("readable");
    let mut lines = maps.lines().skip_while(|line| !(line.contains(" r-xp ") && line.ends_with(PROGRAM)));
    let mut field = |name| field_bytes(&mut lines, name).expect("the program's code is mapped");
    (field("Rss"), field("Pss"))
}
