use proto::shard::{Fence, ShardId};

use super::*;
use crate::core::record::{Begin, KeyPiece, Record};
use proto::message::Digest;
use proto::position::{Epoch, Offset, Position};

/// A data directory that goes with this value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = format!("dunlin-checkpoint-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(path);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn read(&self) -> Result<Option<Checkpoint>, String> {
        read(&self.0, &me())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn me() -> Writer {
    Writer {
        cluster: ClusterUuid(7),
        node: "n1".parse().unwrap(),
    }
}

fn key(number: u64) -> KeyPiece {
    KeyPiece {
        age_ms: 5,
        key: Digest(u128::from(number)),
        body: Digest(1),
        position: Position {
            epoch: Epoch(1),
            offset: Offset(number),
        },
        copies: 2,
    }
}

/// So much that it needs several frames.
fn shards() -> Vec<ShardCheckpoint> {
    let shard = |(number, keys): (u16, u64)| {
        let begin = Record::Begin(Begin {
            forgetful: number == 3,
            tables: Vec::new(),
        });
        let keys: Vec<KeyPiece> = (0..keys).map(key).collect();
        let keys = keys.chunks(1_024).map(|piece| Record::Keys(piece.to_vec()));
        ShardCheckpoint {
            shard: ShardId(number),
            fence: Fence(u64::from(number) + 10),
            waits: number == 9,
            records: [begin]
                .into_iter()
                .chain(keys)
                .chain([Record::Whole])
                .collect(),
        }
    };
    [(3, 0), (5, 40_000), (9, 2)].map(shard).into()
}

#[test]
fn what_was_kept_is_read_once_it_is_there() {
    let folder = Folder::new("read");
    assert!(folder.read().unwrap().is_none());
    let [_, large, _] = &shards()[..] else {
        panic!("three")
    };
    assert_eq!(pieces(large.clone()).len(), 3);
    let bytes = write(&folder.0, me(), 7, shards()).unwrap();
    let length = std::fs::metadata(file(&folder.0)).unwrap().len();
    assert!(
        (bytes..bytes + 1_000).contains(&length),
        "{bytes} of {length}"
    );
    assert_eq!(folder.read().unwrap().unwrap().shards, shards());
    // The next one replaces it.
    write(&folder.0, me(), 7, shards()[..1].to_vec()).unwrap();
    assert_eq!(folder.read().unwrap().unwrap().shards, shards()[..1]);
    remove(&folder.0);
    assert!(folder.read().unwrap().is_none());
    remove(&folder.0);
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
}

#[test]
fn what_is_another_s_is_of_no_use() {
    let folder = Folder::new("other");
    let other = Writer {
        node: "n2".parse().unwrap(),
        ..me()
    };
    write(&folder.0, other, 7, shards()).unwrap();
    let why = folder.read().unwrap_err();
    assert!(why.contains("node n2 of cluster"), "{why}");
}

#[test]
fn what_is_torn_or_damaged_is_of_no_use() {
    let folder = Folder::new("damaged");
    write(&folder.0, me(), 7, shards()[..1].to_vec()).unwrap();
    let whole = std::fs::read(file(&folder.0)).unwrap();
    let put = |bytes: &[u8]| std::fs::write(file(&folder.0), bytes).unwrap();
    for length in 0..whole.len() {
        put(&whole[..length]);
        folder.read().unwrap_err();
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x40;
        put(&damaged);
        folder.read().unwrap_err();
    }
    put(&whole);
    assert_eq!(folder.read().unwrap().unwrap().shards, shards()[..1]);
}

#[test]
fn a_directory_that_takes_nothing_is_told_of_and_left_as_it_was() {
    let folder = Folder::new("full");
    write(&folder.0, me(), 7, shards()[..1].to_vec()).unwrap();
    std::fs::create_dir(folder.0.join(format!("{FILE}.partial"))).unwrap();
    let why = write(&folder.0, me(), 7, shards()).unwrap_err();
    assert!(why.contains("could not write"), "{why}");
    assert_eq!(folder.read().unwrap().unwrap().shards, shards()[..1]);
}
