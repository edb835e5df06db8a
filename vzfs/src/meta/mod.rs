//! The catalog and the private tables; the only module that names rocksdb.
