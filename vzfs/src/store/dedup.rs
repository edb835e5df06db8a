//! Private files of equal content become one blob, and one with what templates have.
//!
//! A search goes through the quiet private files of VEs (`volume` says which those are, and why exchanging a record is safe). The first file of
//! some content is only remembered, by its digest; with the second the content is published, and both refer to the blob from then on. A
//! file whose content is a blob already joins it at once. What is known of files is kept in the database ([`Seen`]), so that the next search
//! reads only what is new, and files of VEs that are not looked at now are found later.
//!
//! # Order, and what a crash leaves
//! Files are shared in groups, because durability has its price by group: blobs are staged, synced and published; the records are exchanged, one
//! by one; the log is synced; the data files go. So at any moment either the data file or the durable blob is in use. What a crash leaves
//! over, blobs without records and data files without records, garbage collection takes.
//!
//! `adding` is held from the look whether a blob is there up to the records that name it (S5), as by any import.
//!
//! # What it costs others
//! Files are read and copied past the page cache and at the pace that is asked for, which counts a file that is only looked at as [`LOOK_BYTES`].
//! Memory is that of one page of private inodes and one group. VEs wait for the exchange of one record at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::events::{Events, Step};
use super::slot::Slot;
use super::turns::{Pace, Pacer, Turn};
use super::{Store, StoreError};
use crate::api::{
    DEFAULT_DEDUP_MIN_BYTES, DEFAULT_DEDUP_QUIET_SECS, DedupProgress, DedupReport, DedupRequest, DedupStatus,
};
use crate::blobs::{Batch, Summary, summarize_file};
use crate::meta::{PrivateContent, Seen, Table};
use crate::types::{Digest, Ino, Timestamp, VeId};
use crate::volume::{Print, QuietFile, QuietRule, Rebased, Unfit, Volume};

/// Key in [`Table::Setting`] of the last finished report.
const LAST_REPORT: &str = "deduplicated";
/// Private inodes looked at together.
const PAGE_ROWS: usize = 512;
/// Files shared together, at most: a crash makes at most so many wait for the next search.
const GROUP_FILES: usize = 256;
/// Bytes published together; a larger file is a group of its own.
const GROUP_BYTES: u64 = 128 << 20;
/// Files of one content that are looked for at once. The others join when it is a blob.
const TWINS: usize = 16;
/// What looking at a file is to the pace: about what a disk reads for it when nothing is cached.
const LOOK_BYTES: u64 = 4096;

/// A file that is about to refer to a blob.
struct Member {
    slot: Arc<Slot>,
    file: QuietFile,
    content: Summary,
}

/// What was shared of a VE.
struct Done {
    slot: Arc<Slot>,
    files: Vec<QuietFile>,
    /// Inodes of which the kernel must ask for the attributes again.
    changed: Vec<Ino>,
}

impl Done {
    fn of(slot: Arc<Slot>) -> Done {
        Done { slot, files: Vec::new(), changed: Vec::new() }
    }
}

struct Search<'a> {
    store: &'a Store,
    turn: &'a Turn<'a, DedupProgress>,
    pacer: Pacer,
    rule: QuietRule,
    /// The VEs that are looked at.
    slots: HashMap<VeId, Arc<Slot>>,
    report: DedupReport,
    group: Vec<Member>,
    /// What is in the group, by VE and data file. A dry run keeps all, to count each once.
    grouped: HashSet<(VeId, u64)>,
    /// Contents that the group publishes.
    publishing: HashSet<Digest>,
    publishing_bytes: u64,
}

impl Store {
    /// Makes private files of equal content one. The report of a search of all VEs is kept until the next one.
    ///
    /// # Errors
    /// [`StoreError::Deduplicating`] while another search runs, and for a scheduled one that had to give up. What was shared by then stays.
    pub fn dedup(
        &self,
        request: &DedupRequest,
        pace: Pace,
        events: &dyn Events,
    ) -> Result<DedupReport, StoreError> {
        self.check_open()?;
        let started = Timestamp::now();
        let progress = DedupProgress {
            started,
            scheduled: pace != Pace::Full,
            files: 0,
            hashed_bytes: 0,
            shared_files: 0,
        };
        let slots: Vec<Arc<Slot>> = if request.ves.is_empty() {
            self.slots()
        } else {
            request.ves.iter().map(|name| self.slot(name)).collect::<Result<_, _>>()?
        };
        let turn = self.deduplicating.begin(pace, progress).ok_or(StoreError::Deduplicating)?;
        let quiet = Duration::from_secs(request.quiet_secs.unwrap_or(DEFAULT_DEDUP_QUIET_SECS));
        let mut search = Search {
            store: self,
            turn: &turn,
            pacer: Pacer::new(pace),
            rule: QuietRule::new(request.min_bytes.unwrap_or(DEFAULT_DEDUP_MIN_BYTES), quiet),
            slots: slots.iter().map(|slot| (slot.id, slot.clone())).collect(),
            report: DedupReport { started, dry_run: request.dry_run, ..DedupReport::default() },
            group: Vec::new(),
            grouped: HashSet::new(),
            publishing: HashSet::new(),
            publishing_bytes: 0,
        };
        let step = Step::new(events, "files", "looking at", None);
        for slot in &slots {
            search.ve(slot, &step)?;
        }
        search.share()?;
        step.finish();
        let mut report = search.report;
        report.finished = Timestamp::now();
        tracing::info!(
            dry_run = report.dry_run,
            files = report.files,
            hashed_bytes = report.hashed_bytes,
            shared = report.shared_files,
            saved_bytes = report.saved_bytes,
            longest_pause_us = report.longest_pause_us,
            "looked for equal private files"
        );
        if request.ves.is_empty() && !request.dry_run {
            self.meta.put(Table::Setting, LAST_REPORT, &report)?;
        }
        Ok(report)
    }

    /// The search that runs, and what the last one did.
    pub fn dedup_status(&self) -> Result<DedupStatus, StoreError> {
        let running = self.deduplicating.running();
        Ok(DedupStatus { running, last: self.meta.get(Table::Setting, LAST_REPORT)? })
    }
}

impl Search<'_> {
    fn check_go_on(&self) -> Result<(), StoreError> {
        self.store.check_open()?;
        if self.turn.must_end() { Err(StoreError::Deduplicating) } else { Ok(()) }
    }

    /// A VE's volume; `None` when it is being removed. Held for moments only, because a removal waits for it.
    fn volume(&self, slot: &Slot) -> Result<Option<Arc<Volume>>, StoreError> {
        match self.store.volume(slot) {
            Ok(volume) => Ok(Some(volume)),
            Err(StoreError::VeRemoving(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ve(&mut self, slot: &Arc<Slot>, step: &Step<'_>) -> Result<(), StoreError> {
        let mut from = None;
        loop {
            self.check_go_on()?;
            let Some(volume) = self.volume(slot)? else { return Ok(()) };
            let page = volume.quiet_files(from, PAGE_ROWS, &self.rule).map_err(failed(slot))?;
            drop(volume);
            let looked = (page.files.len() + page.unfit.len()) as u64;
            self.report.files += looked;
            self.turn.tell(|progress| progress.files += looked);
            self.pacer.read(looked * LOOK_BYTES);
            step.add(looked);
            page.unfit.iter().for_each(|unfit| self.skip(*unfit));
            for file in page.files {
                self.file(slot, file)?;
            }
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        self.report.ves += 1;
        self.forget_gone(slot)
    }

    fn skip(&mut self, unfit: Unfit) {
        let skipped = &mut self.report.skipped;
        *match unfit {
            Unfit::Small => &mut skipped.small,
            Unfit::Sparse => &mut skipped.sparse,
            Unfit::Recent => &mut skipped.recent,
            Unfit::Open => &mut skipped.open,
            Unfit::Changed => &mut skipped.changed,
        } += 1;
    }

    /// Puts a file into the group if its content is a blob, or another file's.
    fn file(&mut self, slot: &Arc<Slot>, file: QuietFile) -> Result<(), StoreError> {
        if self.grouped.contains(&(slot.id, file.data)) {
            return Ok(());
        }
        let known = self.store.meta.seen(slot.id, file.data)?.filter(|seen| print_of(seen) == file.print);
        let content = match known {
            Some(seen) => content_of(&seen),
            None => match self.hash(slot, &file)? {
                Some(content) => content,
                None => return Ok(()),
            },
        };
        let digest = content.digest;
        let member = Member { slot: slot.clone(), file, content };
        if self.publishing.contains(&digest) || self.store.blobs.contains(&digest)? {
            return self.add(member);
        }
        let twins = self.twins(&member)?;
        if twins.is_empty() {
            return Ok(());
        }
        self.publishing.insert(digest);
        self.publishing_bytes += content.allocated_bytes;
        self.report.new_blobs += u64::from(self.report.dry_run);
        self.report.new_blob_bytes += if self.report.dry_run { content.allocated_bytes } else { 0 };
        twins.into_iter().try_for_each(|twin| self.add(twin))?;
        self.add(member)
    }

    /// Other files of that content that are as they were when they were hashed. Only those of VEs that are looked at, as nobody wants the
    /// others changed.
    fn twins(&self, member: &Member) -> Result<Vec<Member>, StoreError> {
        let mut twins = Vec::new();
        for (ve, data) in self.store.meta.seen_with(&member.content.digest, TWINS)? {
            let is_itself = (ve, data) == (member.slot.id, member.file.data);
            let (Some(slot), false) = (self.slots.get(&ve), is_itself) else { continue };
            let Some(seen) = self.store.meta.seen(ve, data)? else { continue };
            let (Some(volume), Some(ino)) = (self.volume(slot)?, Ino::new(seen.ino)) else { continue };
            match volume.quiet_file(ino, &self.rule).map_err(failed(slot))? {
                Some(Ok(file)) if (file.data, file.print) == (data, print_of(&seen)) => {
                    twins.push(Member { slot: slot.clone(), file, content: content_of(&seen) });
                }
                _ => {}
            }
        }
        Ok(twins)
    }

    fn add(&mut self, member: Member) -> Result<(), StoreError> {
        if !self.grouped.insert((member.slot.id, member.file.data)) {
            return Ok(());
        }
        if self.report.dry_run {
            self.shared(&member.file);
            return Ok(());
        }
        self.group.push(member);
        if self.group.len() >= GROUP_FILES || self.publishing_bytes >= GROUP_BYTES {
            self.share()?;
        }
        Ok(())
    }

    fn shared(&mut self, file: &QuietFile) {
        self.report.shared_files += 1;
        self.report.freed_bytes += file.disk_bytes;
        self.report.saved_bytes = self.report.freed_bytes.saturating_sub(self.report.new_blob_bytes);
        self.turn.tell(|progress| progress.shared_files += 1);
    }

    /// Reads a file. `None` when it is left alone.
    fn hash(&mut self, slot: &Slot, file: &QuietFile) -> Result<Option<Summary>, StoreError> {
        self.check_go_on()?;
        let Some(volume) = self.volume(slot)? else { return Ok(None) };
        let opened = match volume.open_quiet(file).map_err(failed(slot))? {
            Ok(opened) => opened,
            Err(unfit) => {
                self.skip(unfit);
                return Ok(None);
            }
        };
        drop(volume);
        let summary = summarize_file(&opened, &mut |bytes| {
            self.pacer.read(bytes);
            self.check_go_on().is_ok()
        });
        let content = match summary {
            Ok(Some(content)) => content,
            Ok(None) => return self.check_go_on().map(|()| None),
            Err(error) => {
                tracing::warn!(ve = %slot.record().name, ino = %file.ino, %error, "a private file cannot be read");
                self.report.skipped.unreadable += 1;
                return Ok(None);
            }
        };
        self.report.hashed_files += 1;
        self.report.hashed_bytes += content.size;
        self.turn.tell(|progress| progress.hashed_bytes += content.size);
        if content.size != file.print.size || !file.is_still(&opened).map_err(failed(slot))? {
            self.skip(Unfit::Changed);
            return Ok(None);
        }
        let Print { size, mtime, ctime } = file.print;
        let digest = *content.digest.as_bytes();
        let allocated_bytes = content.allocated_bytes;
        let seen = Seen { ino: file.ino.get(), size, mtime, ctime, digest, allocated_bytes };
        self.store.meta.put_seen(slot.id, file.data, &seen)?;
        Ok(Some(content))
    }

    /// Shares the files of the group.
    fn share(&mut self) -> Result<(), StoreError> {
        if self.report.dry_run || self.group.is_empty() {
            return Ok(());
        }
        let group = std::mem::take(&mut self.group);
        self.grouped.clear();
        self.publishing.clear();
        self.publishing_bytes = 0;
        let mut given_up: HashMap<VeId, Done> = HashMap::new();
        {
            let _adding = self.store.begin_adding()?;
            let batch = self.store.blobs.batch();
            let mut published = HashSet::new();
            for member in &group {
                let digest = member.content.digest;
                if !published.contains(&digest) && (batch.has(&digest)? || self.publish(&batch, member)?) {
                    published.insert(digest);
                }
            }
            let stats = batch.commit()?;
            self.report.new_blobs += stats.new_blobs;
            for Member { slot, file, content } in group {
                let (true, Some(volume)) = (published.contains(&content.digest), self.volume(&slot)?) else {
                    continue;
                };
                match volume.give_up(&file, content.digest, content.allocated_bytes).map_err(failed(&slot))? {
                    Ok(done) => {
                        let pause = u64::try_from(done.pause.as_micros()).unwrap_or(u64::MAX);
                        self.report.longest_pause_us = self.report.longest_pause_us.max(pause);
                        self.shared(&file);
                        let of_ve = given_up.entry(slot.id).or_insert_with(|| Done::of(slot));
                        of_ve.files.push(file);
                        of_ve.changed.extend(done.blocks_changed.then_some(file.ino));
                    }
                    Err(unfit) => self.skip(unfit),
                }
            }
        }
        // Before the data files go: without it, a power cut could bring back a record whose file is gone.
        self.store.meta.sync()?;
        given_up.into_values().try_for_each(|done| self.clean_up(done))
    }

    /// Makes a blob of a file's content. `false` when it has become another.
    fn publish(&mut self, batch: &Batch<'_>, member: &Member) -> Result<bool, StoreError> {
        let Some(volume) = self.volume(&member.slot)? else { return Ok(false) };
        let Ok(opened) = volume.open_quiet(&member.file).map_err(failed(&member.slot))? else {
            return Ok(false);
        };
        drop(volume);
        let added = batch.add_hashed(&opened, &member.content.digest, &mut |bytes| {
            self.pacer.read(bytes);
            self.check_go_on().is_ok()
        })?;
        self.check_go_on()?;
        self.report.new_blob_bytes += added.map_or(0, |stored| stored.allocated_bytes);
        Ok(added.is_some())
    }

    /// Removes data files that no record names any more, and tells who must know.
    fn clean_up(&self, Done { slot, files, changed }: Done) -> Result<(), StoreError> {
        if let Some(volume) = self.volume(&slot)? {
            for file in files {
                volume.remove_stray(file.data).map_err(failed(&slot))?;
                self.store.meta.forget_seen(slot.id, file.data)?;
            }
        }
        let live = slot.live.lock();
        slot.shown.write().holdings = None;
        if let Some(mount) = live.mount.as_ref().filter(|_| !changed.is_empty()) {
            mount.tell(&Rebased { inodes: changed, ..Rebased::default() });
        }
        Ok(())
    }

    /// Forgets what is known of files that are gone.
    fn forget_gone(&self, slot: &Slot) -> Result<(), StoreError> {
        let meta = &self.store.meta;
        let mut from = 0;
        loop {
            let page = meta.seen_from(slot.id, from, PAGE_ROWS)?;
            for data in &page {
                let ino = meta.seen(slot.id, *data)?.and_then(|seen| Ino::new(seen.ino));
                let record = ino.map(|ino| meta.inode(slot.id, ino)).transpose()?.flatten();
                let is_there = record.is_some_and(
                    |record| matches!(record.content, PrivateContent::Data { id, .. } if id == *data),
                );
                if !is_there {
                    meta.forget_seen(slot.id, *data)?;
                }
            }
            match page.last() {
                Some(last) if page.len() == PAGE_ROWS => from = last + 1,
                _ => return Ok(()),
            }
        }
    }
}

fn print_of(seen: &Seen) -> Print {
    Print { size: seen.size, mtime: seen.mtime, ctime: seen.ctime }
}

fn content_of(seen: &Seen) -> Summary {
    Summary {
        digest: Digest::from_bytes(seen.digest),
        size: seen.size,
        allocated_bytes: seen.allocated_bytes,
    }
}

fn failed(slot: &Slot) -> impl FnOnce(crate::volume::VolumeError) -> StoreError {
    let ve = slot.record().name.clone();
    move |source| StoreError::Volume { ve, source: Box::new(source) }
}
