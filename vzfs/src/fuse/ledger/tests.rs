use super::*;

fn ino(number: u64) -> Ino {
    Ino::new(number).expect("a legal number")
}

/// A handle for reading private data.
const READER: (Handle, Option<Digest>) = (Handle::Reader, None);

fn twice() -> io::Result<u32> {
    Err(io::Error::other("registered twice"))
}

fn adopted(ledger: &Ledger) -> Ledger {
    let memory = ledger.memory.try_clone().expect("a descriptor");
    Ledger::adopt(memory).expect("a sound ledger")
}

#[test]
fn references_are_counted_and_survive() {
    let ledger = Ledger::new(7).expect("memory");
    for number in 2..5000 {
        ledger.refer(ino(number)).expect("memory");
        ledger.refer(ino(number)).expect("memory");
    }
    let ledger = adopted(&ledger);
    assert_eq!(ledger.connection(), 7);
    for number in 2..5000 {
        assert!(!ledger.forget(ino(number), 1));
        assert!(ledger.knows(ino(number)));
        assert!(ledger.forget(ino(number), 1));
        assert!(!ledger.knows(ino(number)));
    }
    assert!(ledger.forget(ino(99_999), 1), "what is not known is forgotten");
}

#[test]
fn forgotten_inodes_leave_their_room_to_others() {
    let ledger = Ledger::new(1).expect("memory");
    for number in 2..200_000 {
        ledger.refer(ino(number)).expect("memory");
        assert!(ledger.forget(ino(number), 1));
    }
    let slots = ledger.state.lock().table.words().len() / SLOT_WORDS;
    assert_eq!(slots, 1 << MIN_SLOTS_LOG2);
    let allocated = std::os::unix::fs::MetadataExt::blocks(&ledger.memory.metadata().expect("stat")) * 512;
    assert!(allocated <= 8 * PAGE_BYTES, "{allocated} bytes for nothing");
}

#[test]
fn one_backing_id_serves_all_handles_of_an_inode() {
    let ledger = Ledger::new(1).expect("memory");
    assert_eq!(ledger.open(1, ino(9), READER, || Ok(41)).expect("counted").backing, 41);
    assert_eq!(ledger.open(2, ino(9), (Handle::Writer, None), twice).expect("counted").backing, 41);
    assert_eq!(ledger.handles(ino(9)).writers, 1);
    assert_eq!(ledger.close(3, ino(9), Handle::Reader), (true, None));
    assert_eq!(ledger.close(4, ino(9), Handle::Writer), (true, Some(41)));
    assert_eq!(ledger.handles(ino(9)), Handles { written: true, ..Handles::default() });
    assert_eq!(ledger.close(5, ino(9), Handle::Writer), (false, None), "more closed than opened");
}

#[test]
fn a_blob_stays_registered_for_the_next_who_opens_it() {
    let ledger = Ledger::new(1).expect("memory");
    ledger.refer(ino(9)).expect("memory");
    let on = |content: &[u8]| (Handle::Reader, Some(Digest::of(content)));
    assert_eq!(ledger.open(1, ino(9), on(b"x"), || Ok(41)).expect("counted").backing, 41);
    assert_eq!(ledger.close(2, ino(9), Handle::Reader), (true, None));
    assert_eq!(ledger.registered(ino(9)), Some(Digest::of(b"x")));
    assert_eq!(ledger.inodes_in_use(), [], "nobody has it open");
    assert_eq!(ledger.open(3, ino(9), on(b"x"), twice).expect("counted").backing, 41);
    ledger.close(4, ino(9), Handle::Reader);
    // The inode has other content now, as after a merge.
    let counted = ledger.open(5, ino(9), on(b"y"), || Ok(42)).expect("counted");
    assert_eq!(counted, Counted { backing: 42, unused: Some(41) });
    ledger.close(6, ino(9), Handle::Reader);
    // And it is private now.
    let counted = ledger.open(7, ino(9), (Handle::Writer, None), || Ok(43)).expect("counted");
    assert_eq!(counted, Counted { backing: 43, unused: Some(42) });
    assert_eq!(ledger.registered(ino(9)), None);
    assert_eq!(ledger.close(8, ino(9), Handle::Writer), (true, Some(43)));
    ledger.open(9, ino(9), on(b"x"), || Ok(44)).expect("counted");
    ledger.close(10, ino(9), Handle::Reader);
    assert_eq!(ledger.take_registered(ino(9)), Some(44), "the kernel has forgotten it");
    assert_eq!(ledger.take_registered(ino(9)), None);
}

/// L5.
#[test]
fn who_takes_the_ledger_over_closes_what_has_no_users() {
    let ledger = Ledger::new(1).expect("memory");
    let on = (Handle::Reader, Some(Digest::of(b"x")));
    for number in [9, 10, 11] {
        ledger.open(number, ino(number), on, || Ok(number as u32)).expect("counted");
    }
    ledger.open(12, ino(10), (Handle::Served, None), twice).expect("counted");
    ledger.close(13, ino(9), Handle::Reader);
    ledger.close(14, ino(10), Handle::Reader);
    let adopted = adopted(&ledger);
    assert_eq!(adopted.registered(ino(9)), None);
    let mut unused = adopted.take_all_unused();
    unused.sort_unstable();
    assert_eq!(unused, [9, 10]);
    assert_eq!(adopted.handles(ino(10)).served, 1);
    assert_eq!(adopted.handles(ino(11)).backing, 11);
    assert_eq!(
        adopted.close(15, ino(11), Handle::Reader),
        (true, Some(11)),
        "this process did not register it"
    );
}

#[test]
fn a_request_that_comes_again_is_counted_once() {
    let ledger = Ledger::new(1).expect("memory");
    ledger.open(10, ino(9), READER, || Ok(41)).expect("counted");
    ledger.open(11, ino(9), READER, || Ok(42)).expect("counted");
    let ledger = adopted(&ledger);
    assert!(ledger.carried_out(11) && !ledger.carried_out(12));
    assert_eq!(ledger.open(11, ino(9), READER, || Ok(43)).expect("known").backing, 41);
    assert_eq!(ledger.close(12, ino(9), Handle::Reader), (true, None));
    let ledger = adopted(&ledger);
    assert_eq!(ledger.close(12, ino(9), Handle::Reader), (false, None));
    assert_eq!(
        ledger.inodes_in_use(),
        vec![(ino(9), Handles { readers: 1, backing: 41, ..Handles::default() })]
    );
}

#[test]
fn a_change_cut_off_at_any_store_is_finished_or_not_begun() {
    let ledger = Ledger::new(1).expect("memory");
    ledger.open(1, ino(9), READER, || Ok(41)).expect("counted");
    // As a process leaves it that dies between the commit point and the table.
    let (counts, backing) = Handles { readers: 2, backing: 41, ..Handles::default() }.words();
    {
        let state = ledger.state.lock();
        let words = state.header.words();
        for (at, value) in [(5, 9), (6, counts), (7, backing), (8, 77)] {
            words[at].store(value, Ordering::Release);
            assert_eq!(adopted(&ledger_of(&ledger)).handles(ino(9)).readers, 1, "not begun");
        }
        words[PENDING].store(1, Ordering::Release);
    }
    let ledger = adopted(&ledger);
    assert_eq!(ledger.handles(ino(9)).readers, 2);
    assert!(ledger.carried_out(77));
}

#[test]
fn what_had_writers_may_be_mapped_by_them_until_the_kernel_forgets_it() {
    let ledger = Ledger::new(1).expect("memory");
    let used = |ledger: &Ledger| -> Vec<Ino> {
        let mut used: Vec<_> = ledger.inodes_in_use().into_iter().map(|(ino, _)| ino).collect();
        used.sort_unstable();
        used
    };
    for number in 2..100 {
        ledger.refer(ino(number)).expect("memory");
    }
    ledger.open(1, ino(8), READER, || Ok(40)).expect("counted");
    ledger.open(2, ino(9), (Handle::Writer, None), || Ok(41)).expect("counted");
    assert_eq!(used(&ledger), [ino(8), ino(9)]);
    ledger.close(3, ino(8), Handle::Reader);
    ledger.close(4, ino(9), Handle::Writer);
    assert_eq!(used(&ledger), [ino(9)]);
    let ledger = adopted(&ledger);
    assert_eq!(used(&ledger), [ino(9)]);
    assert!(ledger.forget(ino(9), 1));
    assert_eq!(used(&ledger), []);
}

#[test]
fn a_ledger_that_does_not_tell_what_had_writers_counts_all_as_such() {
    let ledger = Ledger::new(1).expect("memory");
    for number in 2..5 {
        ledger.refer(ino(number)).expect("memory");
    }
    ledger.open(1, ino(3), READER, || Ok(41)).expect("counted");
    ledger.state.lock().header.words()[0].store(MAGIC_1, Ordering::Release);
    // And the second time it is one of this version.
    for ledger in [adopted(&ledger), adopted(&ledger)] {
        let used = ledger.inodes_in_use();
        assert_eq!(used.len(), 3);
        assert!(used.iter().all(|(_, handles)| handles.written && handles.writers == 0));
        assert_eq!(ledger.handles(ino(3)).readers, 1);
    }
}

/// The same memory without the first one's lock.
fn ledger_of(ledger: &Ledger) -> Ledger {
    Ledger::adopt(ledger.memory.try_clone().expect("a descriptor")).expect("a sound ledger")
}

#[test]
fn what_is_no_ledger_is_refused() {
    let memory = File::from(rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC).expect("memfd"));
    assert!(Ledger::adopt(memory).is_err());
}
