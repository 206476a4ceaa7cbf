//! A .torrent file from a stranger: any bytes are a torrent or an error, in time and memory of their size.
#![no_main]

use dtorrent::model::Metainfo;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(metainfo) = Metainfo::parse(bytes) {
        metainfo.client_hash();
        assert!(metainfo.length > 0 && !metainfo.files.is_empty());
        for name in metainfo.files.iter().flat_map(|file| &file.path) {
            assert!(!name.is_empty() && name != b".." && !name.contains(&b'/') && !name.contains(&0));
        }
    }
});
