//! Arbitrary JSON as the records of a store's catalog: the store opens and answers, or refuses to open with an error.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vzfs::meta::{Meta, Table};
use vzfs::store::Store;
use vzfs_fuzz::NoMounts;

/// One store for all inputs: making one takes long.
static STORE: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = vzfs_fuzz::scratch().join("store");
    drop(Store::create_or_open(&dir, Box::new(NoMounts)).expect("a new store"));
    dir
});

// Lines `TABLE KEY JSON`, the table being one of `t`, `g`, `v`, `b`, `s`.
fuzz_target!(|text: &str| {
    let dir = &*STORE;
    let meta = Meta::open(&dir.join("meta")).expect("a database");
    for table in [Table::Template, Table::Tag, Table::Ve, Table::Base, Table::Setting] {
        for (key, _) in meta.list::<serde_json::Value>(table).expect("JSON") {
            meta.delete(table, &key).expect("the database works");
        }
    }
    for line in text.lines().take(20) {
        let mut parts = line.splitn(3, ' ');
        let (Some(table), Some(key), Some(json)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let table = match table {
            "t" => Table::Template,
            "g" => Table::Tag,
            "v" => Table::Ve,
            "b" => Table::Base,
            "s" => Table::Setting,
            _ => continue,
        };
        let Ok(value) = serde_json::from_str::<serde_json::Value>(json) else { continue };
        meta.put(table, key, &value).expect("the database works");
    }
    drop(meta);
    let Ok(store) = Store::create_or_open(dir, Box::new(NoMounts)) else { return };
    for template in store.templates() {
        let reference = template.spec().to_string().parse().expect("a name");
        let _ = store.template(&reference);
        let _ = store.export_template(&reference, &mut std::io::sink());
        let request = format!(r#"{{"name":"made","templates":["{reference}"]}}"#);
        let _ = store.create(&serde_json::from_str(&request).expect("a request"));
    }
    for ve in store.ves().unwrap_or_default() {
        let _ = (store.ve(&ve.name), store.diff_ve(&ve.name), store.mount(&ve.name, None));
        let _ = store.remove(&ve.name, true);
    }
    let _ = store.info();
});
