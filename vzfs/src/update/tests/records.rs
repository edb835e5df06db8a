//! Rollouts in a real database, and a store that heeds them.

use std::path::Path;

use super::*;
use crate::api::{CreateVe, ImportRequest, OnConflict};
use crate::meta::Meta;
use crate::store::{BoxError, Mounted, Mounter, Store};
use crate::types::{IdShift, VeId, VeName};
use crate::volume::Volume;

/// A journal on a database, with what happens in the VEs made up.
struct Real {
    dir: tempfile::TempDir,
    fakes: Fakes,
}

impl Real {
    /// The next daemon, when the last one is gone with its threads.
    fn reopen(&self, last: Arc<Updates>) -> Arc<Updates> {
        last.close();
        let last = Arc::downgrade(&{ last });
        self.fakes.until(|| (last.strong_count() == 0).then_some(()));
        self.open()
    }

    fn open(&self) -> Arc<Updates> {
        let meta = Arc::new(Meta::open(&self.dir.path().join("meta")).expect("opens"));
        let journal = MetaJournal::new(meta);
        let updates = Updates::open(Box::new(self.fakes.clone()), Box::new(journal)).expect("opens");
        updates.go_on();
        updates
    }
}

#[test]
fn what_is_kept_is_read_again_as_it_was() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("a folder in /var/tmp");
    let real = Real { dir, fakes: Fakes::with(4, &["os@1"]) };
    real.fakes.shadow("ve-1", "etc/motd");
    real.fakes.fail("ve-3", "its disk is full");
    let updates = real.open();
    let request = UpdateRequest {
        canary: Some(Portion::Percent(50)),
        templates: vec![reference("os@2")],
        check: Some("true".to_owned()),
        on_conflict: OnConflict::Take,
        max_failures: 1,
        ..all()
    };
    let before = run(&updates, &request);
    let ways = updates.ways_back(&item("os@1").spec);
    let detail = updates.rollout_ve(before.head.id, &ve_name("ve-1")).expect("known");
    let shadowed = updates.shadowed().expect("known");
    let updates = real.reopen(updates);
    assert_eq!(updates.rollout(before.head.id).expect("known"), before);
    assert_eq!(updates.rollout_ve(before.head.id, &ve_name("ve-1")).expect("known"), detail);
    assert_eq!(updates.shadowed().expect("known"), shadowed);
    assert!(!shadowed.is_empty());
    assert_eq!(updates.ways_back(&item("os@1").spec), ways);
    assert_eq!(ways.len(), 3);
    // What is forgotten is gone also for the next daemon, and numbers go on.
    updates.forget(before.head.id).expect("forgotten");
    real.fakes.remove("ve-1");
    let updates = real.reopen(updates);
    assert!(updates.rollouts().is_empty() && updates.shadowed().expect("known").is_empty());
    real.fakes.fail("ve-3", "");
    assert_eq!(run(&updates, &all()).head.id, before.head.id + 1);
}

struct NoMounts;

impl Mounter for NoMounts {
    fn mount(
        &self,
        _: Arc<Volume>,
        _: &VeName,
        _: &Path,
        _: Option<IdShift>,
    ) -> Result<Box<dyn Mounted>, BoxError> {
        Err("no mounts today".into())
    }
}

/// Needs one template for one VE.
struct Needs(WayBack, TemplateSpec);

impl WaysBack for Needs {
    fn ways_back(&self, spec: &TemplateSpec) -> Vec<WayBack> {
        if *spec == self.1 { vec![self.0.clone()] } else { Vec::new() }
    }
}

/// S4 and U5.
#[test]
fn a_template_that_a_rollout_needs_is_not_removed() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("a folder in /var/tmp");
    let store = Store::create_or_open(&dir.path().join("store"), Box::new(NoMounts)).expect("a store");
    let source = dir.path().join("os");
    std::fs::create_dir_all(source.join("etc")).expect("made");
    for spec in ["os@1", "os@2"] {
        std::fs::write(source.join("etc/version"), spec).expect("written");
        let text = format!(r#"{{"template":"{spec}","source":"{}"}}"#, source.display());
        let request: ImportRequest = serde_json::from_str(&text).expect("legal");
        store.import(&request, &()).expect("imported");
    }
    let request: CreateVe = serde_json::from_str(r#"{"name":"web","templates":["os@2"]}"#).expect("legal");
    store.create(&request).expect("made");
    let standing = store.standings().remove(0);
    assert_eq!((standing.name.as_str(), standing.mounted), ("web", None));
    let os: TemplateSpec = "os@1".parse().expect("legal");
    let needs = |ve: VeId, at: Vec<StackItem>| -> Arc<dyn WaysBack> {
        Arc::new(Needs(WayBack { update: 7, ve, at }, os.clone()))
    };
    let ways = needs(standing.id, standing.stack.clone());
    store.heed_ways_back(Arc::downgrade(&ways));
    let refused = store.remove_template(&reference("os@1"), false).expect_err("needed");
    assert_eq!(refused.to_string(), "template os@1 is needed to finish or to roll back update 7");
    // A VE that has gone elsewhere, or is gone, will not be brought back.
    for other in [needs(standing.id, Vec::new()), needs(VeId(99), standing.stack.clone())] {
        store.heed_ways_back(Arc::downgrade(&other));
        drop(other);
    }
    let other = needs(standing.id, Vec::new());
    store.heed_ways_back(Arc::downgrade(&other));
    store.remove_template(&reference("os@1"), false).expect("nobody needs it");
}
