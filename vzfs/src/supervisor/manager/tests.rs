use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::*;
use crate::fuse::Agreed;
use crate::types::VeId;

/// The other side.
struct Manager(UnixDatagram);

impl Manager {
    fn receive(&self) -> (String, Vec<OwnedFd>) {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
        let received = rustix::net::recvmsg(&self.0, &mut slices, &mut ancillary, RecvFlags::DONTWAIT);
        let len = received.expect("a message").bytes;
        let descriptors = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = descriptors.flatten().collect();
        (String::from_utf8_lossy(&bytes[..len]).into_owned(), descriptors)
    }
}

fn find(socket: &str, store: &str) -> ServiceManager {
    let variable = |name: &str| (name == "NOTIFY_SOCKET").then(|| socket.into());
    ServiceManager::find(variable, Path::new(store)).expect("reachable").expect("named")
}

/// With an abstract socket of this test's own.
fn pair(name: &str) -> (ServiceManager, Manager) {
    let name = format!("vzfs-test-{}-{name}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("legal");
    let manager = Manager(UnixDatagram::bind_addr(&address).expect("free"));
    (find(&format!("@{name}"), "/store"), manager)
}

fn holding() -> Holding {
    let agreed = Agreed { init: vec![0, 255, 7], passthrough: true, threads: 2 };
    Holding { ve: VeId(7), mountpoint: "/root/some ve".into(), agreed }
}

/// A character device that is no FUSE connection, for which poll(2) finds nothing wrong; and a ledger.
fn descriptors() -> (OwnedFd, OwnedFd) {
    let device = File::open("/dev/null").expect("there").into();
    (device, rustix::fs::memfd_create("ledger", MemfdFlags::CLOEXEC).expect("memory"))
}

/// What the manager has of a mount after it was kept: its name and its descriptors.
fn kept(of: &ServiceManager, at: &Manager) -> (String, Vec<OwnedFd>) {
    let (device, ledger) = descriptors();
    let name = of.keep(&holding(), device.as_fd(), ledger.as_fd()).expect("told");
    let (text, descriptors) = at.receive();
    assert_eq!(text, format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n"));
    assert!(name.len() <= 255 && name.is_ascii() && !name.contains(':'), "{name}");
    (name, descriptors)
}

#[test]
fn what_is_kept_comes_back_in_any_order() {
    let (ours, theirs) = pair("order");
    for turn in 0..3 {
        let (name, mut descriptors) = kept(&ours, &theirs);
        descriptors.rotate_left(turn);
        let held = ours.restore(&name, descriptors).expect("usable");
        assert_eq!(format!("{:?}", held.holding), format!("{:?}", holding()));
        assert_eq!(held.name, Some(name.clone()));
        let stat = |fd: &OwnedFd| rustix::fs::fstat(fd).expect("stat").st_mode;
        assert_eq!(FileType::from_raw_mode(stat(&held.device)), FileType::CharacterDevice);
        assert_eq!(rustix::fs::fcntl_get_seals(&held.ledger).expect("a memfd"), SealFlags::SEAL);
        ours.forget(&name);
        assert_eq!(theirs.receive().0, format!("FDSTOREREMOVE=1\nFDNAME={name}\n"));
    }
}

#[test]
fn mounts_of_one_ve_have_different_names() {
    let (ours, theirs) = pair("names");
    assert_ne!(kept(&ours, &theirs).0, kept(&ours, &theirs).0);
}

#[test]
fn a_path_is_an_address_too() {
    let folder = tempfile::tempdir().expect("scratch");
    let path = folder.path().join("notify");
    let theirs = Manager(UnixDatagram::bind(&path).expect("free"));
    let ours = find(path.to_str().expect("text"), "/store");
    ours.ready();
    ours.stopping();
    assert_eq!(theirs.receive().0, "READY=1\n");
    assert_eq!(theirs.receive().0, "STOPPING=1\n");
    drop(theirs);
    let (device, ledger) = descriptors();
    assert!(ours.keep(&holding(), device.as_fd(), ledger.as_fd()).is_err());
}

#[test]
fn what_cannot_be_used_is_told_apart() {
    let (ours, theirs) = pair("unusable");
    let (name, mut two) = kept(&ours, &theirs);
    two.pop();
    assert!(matches!(ours.restore(&name, two), Err(Unusable::Incomplete)));

    let (name, mut other) = kept(&ours, &theirs);
    other[2] = write_description(b"{\"store\": 7}").expect("memory");
    assert!(matches!(ours.restore(&name, other), Err(Unusable::Unreadable(_))));

    // A connection that nothing is mounted by looks as one that has ended.
    let (name, mut ended) = kept(&ours, &theirs);
    ended[0] = File::options().read(true).write(true).open("/dev/fuse").expect("a FUSE device").into();
    assert!(matches!(ours.restore(&name, ended), Err(Unusable::Ended)));

    let (name, descriptors) = kept(&ours, &theirs);
    let of_other = ServiceManager { store: "/other".into(), ..ours };
    assert!(
        matches!(of_other.restore(&name, descriptors), Err(Unusable::OtherStore(store)) if store == Path::new("/store"))
    );
}

#[test]
fn a_description_does_not_change_and_is_read_from_its_begin() {
    let mut file = File::from(
        write_description(
            &serde_json::to_vec(&Description { store: "/s".into(), holding: holding() }).expect("text"),
        )
        .expect("memory"),
    );
    // Its position is at the end, where the writer left it.
    assert_eq!(read_description(&file).expect("read").store, Path::new("/s"));
    assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
}

#[test]
fn descriptors_go_by_name_and_foreign_ones_are_closed() {
    let some = |count| (0..count).map(|_| File::open("/dev/null").expect("there").into()).collect();
    let found = by_name(some(5), OsStr::new("vzfs-1:stored:vzfs-2:vzfs-1"));
    let counts: Vec<_> = found.iter().map(|(name, all)| (name.as_str(), all.len())).collect();
    assert_eq!(counts, [("vzfs-1", 2), ("vzfs-2", 1)]);
}

#[test]
fn without_a_manager_there_is_none() {
    let store = Path::new("/store");
    assert!(ServiceManager::find(|_| None, store).expect("fine").is_none());
    assert!(ServiceManager::find(|_| Some(OsString::new()), store).expect("fine").is_none());
    assert!(ServiceManager::find(|_| Some("vsock:2:1".into()), store).is_err());
    // What is meant for another process is not taken.
    let (ours, _theirs) = pair("other process");
    assert_eq!(ours.handed.0, 0);
}
