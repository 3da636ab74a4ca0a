//! The data directory: one file that holds the Raft log and what the node must
//! remember of itself. Every value carries a checksum, and all of them are
//! read when the file is opened: a damaged file is found then, is named, and is
//! never written to. (Two faults at once are not found: if the process was
//! killed and what it wrote last is damaged, that counts as not written.)

use std::cell::Cell;
use std::fs;
use std::ops::RangeBounds;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The file's name in the data directory.
const FILE: &str = "dunlin.redb";
/// The form of its content.
const FORMAT: u32 = 1;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Why a data directory cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Its content is damaged.
    #[error(
        "the data file {file} is damaged ({problem}) and has been left as it is; restore it from a copy, or move it away to start as a new node"
    )]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Another process uses it.
    #[error("the data directory {0} is in use by another process; give each node its own --data")]
    InUse(String),
    /// It cannot be read or written.
    #[error("could not use the data file {file}: {problem}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        problem: String,
    },
    /// It was written by a later version.
    #[error(
        "the data file {file} has format {found}, and this version knows {FORMAT}: it was written by a later version of dunlin"
    )]
    Format {
        /// The file.
        file: String,
        /// Its format.
        found: u32,
    },
}

/// An open data directory. Clones are the same.
#[derive(Clone)]
pub(crate) struct Store {
    database: Arc<Database>,
    file: Arc<str>,
    _lock: Option<Arc<fs::File>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.file)
    }
}

impl Store {
    /// Whether a directory is a node's data directory.
    pub(crate) fn is_in(directory: &Path) -> bool {
        directory.join(FILE).exists()
    }

    /// Opens a data directory, making it if there is none.
    ///
    /// # Errors
    /// [`StoreError`]; nothing has been changed then.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(FILE);
        let file = path.display().to_string();
        let io = |error: &dyn std::fmt::Display| StoreError::Io {
            file: file.clone(),
            problem: error.to_string(),
        };
        fs::create_dir_all(directory).map_err(|error| io(&error))?;
        match fs::metadata(&path) {
            Ok(found) if found.len() == 0 => {
                return Err(StoreError::Damaged {
                    file,
                    problem: "it is empty".into(),
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                create(directory, &path).map_err(|problem| io(&problem))?;
            }
            Err(error) => return Err(io(&error)),
        }
        let lock = lock(directory).map_err(|error| io(&error))?;
        let Some(lock) = lock else {
            return Err(StoreError::InUse(directory.display().to_string()));
        };
        // A copy in memory first: to open a file may change it.
        let bytes = fs::read(&path).map_err(|error| io(&error))?;
        let damaged = |problem: String| StoreError::Damaged {
            file: file.clone(),
            problem,
        };
        quietly(|| {
            let memory = InMemoryBackend::new();
            memory.set_len(bytes.len() as u64)?;
            memory.write(0, &bytes)?;
            Ok::<_, redb::Error>(Database::builder().create_with_backend(memory)?)
        })
        .map_err(damaged)
        .and_then(|copy| {
            let store = Self {
                database: Arc::new(copy),
                file: file.as_str().into(),
                _lock: None,
            };
            quietly(|| Ok::<_, String>(store.check())).map_err(damaged)?
        })?;
        let database = Database::open(&path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => {
                StoreError::InUse(directory.display().to_string())
            }
            error => io(&error),
        })?;
        Ok(Self {
            database: Arc::new(database),
            file: file.as_str().into(),
            _lock: Some(Arc::new(lock)),
        })
    }

    /// A value that the node remembers.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(META)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        };
        let Some(bytes) = read().map_err(|error| self.io(&error))? else {
            return Ok(None);
        };
        self.decode(&bytes).map(Some)
    }

    /// Remembers a value; on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn put<T: Serialize>(&self, key: &str, value: &T) -> Result<(), StoreError> {
        let bytes = encode(value);
        self.write(|transaction| {
            transaction
                .open_table(META)?
                .insert(key, bytes.as_slice())?;
            Ok(())
        })
    }

    /// Forgets a value.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn remove(&self, key: &str) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(META)?.remove(key)?;
            Ok(())
        })
    }

    /// Appends entries to the log; on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn append<T: Serialize>(&self, entries: &[(u64, T)]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(LOG)?;
            for (index, entry) in entries {
                table.insert(*index, encode(entry).as_slice())?;
            }
            Ok(())
        })
    }

    /// Removes entries from the log and remembers a value, in one step.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn cut<T: Serialize>(
        &self,
        range: impl RangeBounds<u64> + Clone,
        remember: Option<(&str, &T)>,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            if let Some((key, value)) = remember {
                transaction
                    .open_table(META)?
                    .insert(key, encode(value).as_slice())?;
            }
            let mut table = transaction.open_table(LOG)?;
            table.retain_in(range, |_, _| false)?;
            Ok(())
        })
    }

    /// Entries of the log: the first ones of the range, as many as have no more
    /// bytes than this together, and at least one, if there are any.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn entries<T: DeserializeOwned>(
        &self,
        range: impl RangeBounds<u64>,
        bytes_max: usize,
    ) -> Result<Vec<T>, StoreError> {
        let read = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(LOG)?;
            let mut entries = Vec::new();
            let mut room = bytes_max;
            for entry in table.range(range)? {
                let value = entry?.1;
                let bytes = value.value();
                match room.checked_sub(bytes.len()) {
                    Some(left) => room = left,
                    None if entries.is_empty() => room = 0,
                    None => break,
                }
                entries.push(bytes.to_vec());
            }
            Ok(entries)
        };
        let entries = read().map_err(|error| self.io(&error))?;
        entries.iter().map(|bytes| self.decode(bytes)).collect()
    }

    /// The last entry of the log.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn last<T: DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(LOG)?;
            Ok(table.last()?.map(|(_, value)| value.value().to_vec()))
        };
        let last = read().map_err(|error| self.io(&error))?;
        last.map(|bytes| self.decode(&bytes)).transpose()
    }

    /// Reads everything once.
    fn check(&self) -> Result<(), StoreError> {
        let damaged = |problem: String| StoreError::Damaged {
            file: self.file.to_string(),
            problem,
        };
        let read = || -> Result<bool, redb::Error> {
            let transaction = self.database.begin_read()?;
            let meta = transaction.open_table(META)?;
            let mut sound = true;
            for value in meta.iter()? {
                sound &= checked(value?.1.value()).is_some();
            }
            for value in transaction.open_table(LOG)?.iter()? {
                sound &= checked(value?.1.value()).is_some();
            }
            Ok(sound)
        };
        match read() {
            Ok(true) => {}
            Ok(false) => return Err(damaged("a checksum is wrong".into())),
            Err(error) => return Err(damaged(error.to_string())),
        }
        match self.get::<u32>("format")? {
            Some(FORMAT) => Ok(()),
            Some(found) => Err(StoreError::Format {
                file: self.file.to_string(),
                found,
            }),
            None => Err(damaged("it does not say its format".into())),
        }
    }

    fn write(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let run = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            change(&transaction)?;
            transaction.commit()?;
            Ok(())
        };
        run().map_err(|error| self.io(&error))
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, StoreError> {
        let damaged = |problem: String| StoreError::Damaged {
            file: self.file.to_string(),
            problem,
        };
        let payload = checked(bytes).ok_or_else(|| damaged("a checksum is wrong".into()))?;
        rmp_serde::from_slice(payload).map_err(|error| damaged(error.to_string()))
    }

    fn io(&self, error: &dyn std::fmt::Display) -> StoreError {
        StoreError::Io {
            file: self.file.to_string(),
            problem: error.to_string(),
        }
    }
}

/// Takes the directory for this process. `None`: another one has it.
fn lock(directory: &Path) -> std::io::Result<Option<fs::File>> {
    let handle = fs::File::open(directory)?;
    match handle.try_lock() {
        Ok(()) => Ok(Some(handle)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// A damaged file may surprise the library in more ways than by an error. Its
/// panic becomes one, and nobody is frightened by a backtrace.
fn quietly<T, E: std::fmt::Display>(read: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                earlier(info);
            }
        }));
    });
    QUIET.set(true);
    let done = catch_unwind(AssertUnwindSafe(read));
    QUIET.set(false);
    match done {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("its structure makes no sense".into()),
    }
}

/// Makes the file under another name first: one that is there is whole.
fn create(directory: &Path, path: &Path) -> Result<(), String> {
    let fresh: PathBuf = directory.join("dunlin.redb.new");
    let text = |error: &dyn std::fmt::Display| error.to_string();
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(text(&error)),
        _ => {}
    }
    let make = || -> Result<(), redb::Error> {
        let database = Database::create(&fresh)?;
        let transaction = database.begin_write()?;
        transaction.open_table(LOG)?;
        transaction
            .open_table(META)?
            .insert("format", encode(&FORMAT).as_slice())?;
        transaction.commit()?;
        Ok(())
    };
    make().map_err(|error| text(&error))?;
    fs::rename(&fresh, path).map_err(|error| text(&error))
}

/// A value with its checksum before it.
fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let payload = rmp_serde::to_vec(value).expect("our types always encode into memory");
    let mut bytes = xxhash_rust::xxh3::xxh3_64(&payload).to_le_bytes().to_vec();
    bytes.extend(payload);
    bytes
}

/// The value, if its checksum is right.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (checksum, payload) = bytes.split_first_chunk::<8>()?;
    (xxhash_rust::xxh3::xxh3_64(payload).to_le_bytes() == *checksum).then_some(payload)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const ALL: usize = usize::MAX;

    /// A folder that goes with this value.
    pub(in crate::raft) struct Scratch(pub(in crate::raft) PathBuf);

    impl Scratch {
        pub(in crate::raft) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("dunlin-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }

        fn file(&self) -> PathBuf {
            self.0.join(FILE)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn values_and_entries_are_there_when_it_is_opened_again() {
        let scratch = Scratch::new("store-reopen");
        let store = Store::open(&scratch.0).unwrap();
        store.put("name", &"n1").unwrap();
        store.append(&[(1, "a"), (2, "b"), (3, "c")]).unwrap();
        store.cut(..=1, Some(("purged", &1_u64))).unwrap();
        drop(store);
        let store = Store::open(&scratch.0).unwrap();
        assert_eq!(store.get::<String>("name").unwrap().unwrap(), "n1");
        assert_eq!(store.get::<u64>("purged").unwrap(), Some(1));
        assert_eq!(store.entries::<String>(0..9, ALL).unwrap(), ["b", "c"]);
        assert_eq!(store.last::<String>().unwrap().unwrap(), "c");
        store.remove("name").unwrap();
        assert_eq!(store.get::<String>("name").unwrap(), None);
    }

    #[test]
    fn no_more_of_the_log_is_read_than_is_asked_for() {
        let scratch = Scratch::new("store-bounds");
        let store = Store::open(&scratch.0).unwrap();
        let entries: Vec<(u64, String)> = (1..=9).map(|n| (n, n.to_string().repeat(100))).collect();
        store.append(&entries).unwrap();
        let bytes = encode(&entries[0].1).len();
        let read = |range: std::ops::Range<u64>, bytes_max| -> Vec<String> {
            store.entries(range, bytes_max).unwrap()
        };
        let text = |range: std::ops::Range<usize>| -> Vec<String> {
            entries[range]
                .iter()
                .map(|(_, text)| text.clone())
                .collect()
        };
        assert_eq!(read(1..10, ALL), text(0..9));
        assert_eq!(read(2..10, 3 * bytes), text(1..4));
        assert_eq!(read(2..10, 4 * bytes - 1), text(1..4));
        assert_eq!(read(2..4, 3 * bytes), text(1..3));
        assert_eq!(read(5..10, 0), text(4..5), "it goes alone");
        assert_eq!(read(10..20, 0), text(0..0));
    }

    #[test]
    fn a_directory_has_one_user() {
        let scratch = Scratch::new("store-lock");
        let _store = Store::open(&scratch.0).unwrap();
        assert!(matches!(Store::open(&scratch.0), Err(StoreError::InUse(_))));
    }

    #[test]
    fn a_damaged_file_is_named_and_left_as_it_is() {
        let scratch = Scratch::new("store-damage");
        let store = Store::open(&scratch.0).unwrap();
        store.append(&[(1, "x".repeat(3_000))]).unwrap();
        store.put("name", &"y".repeat(3_000)).unwrap();
        drop(store);
        let whole = fs::read(scratch.file()).unwrap();
        let at_value = whole.windows(64).position(|w| w == [b'x'; 64]).unwrap() + 700;
        let mut flipped = whole.clone();
        flipped[at_value] ^= 1;
        let mut beheaded = whole.clone();
        beheaded[..512].fill(0xaa);
        for damaged in [Vec::new(), b"not a database".to_vec(), flipped, beheaded] {
            fs::write(scratch.file(), &damaged).unwrap();
            match Store::open(&scratch.0) {
                Err(StoreError::Damaged { file, .. }) => assert!(file.ends_with(FILE)),
                other => panic!("{} bytes: {other:?}", damaged.len()),
            }
            assert_eq!(fs::read(scratch.file()).unwrap(), damaged, "left as it is");
        }
        fs::write(scratch.file(), &whole).unwrap();
        assert!(Store::open(&scratch.0).is_ok());
    }

    /// As `kill -9` leaves it, a file must be repaired, which writes to it; one
    /// that is damaged as well must not be.
    #[test]
    fn a_file_of_a_killed_process_is_repaired_only_if_it_is_whole() {
        let scratch = Scratch::new("store-killed");
        let store = Store::open(&scratch.0).unwrap();
        store.append(&[(1, "x".repeat(3_000))]).unwrap();
        let running = fs::read(scratch.file()).unwrap();
        drop(store);
        fs::write(scratch.file(), &running).unwrap();
        let store = Store::open(&scratch.0).unwrap();
        let entries = store.entries::<String>(.., ALL).unwrap();
        assert_eq!(entries, ["x".repeat(3_000)]);
        drop(store);
        let at_value = running.windows(64).position(|w| w == [b'x'; 64]).unwrap() + 700;
        let steps = (0..running.len().min(40_000)).step_by(997);
        for at in steps.chain([at_value]) {
            let mut damaged = running.clone();
            damaged[at] ^= 0x55;
            fs::write(scratch.file(), &damaged).unwrap();
            match Store::open(&scratch.0) {
                // A byte that nothing is in, or one that makes the last write
                // look as if it had been cut off.
                Ok(store) => {
                    let entries = store.entries::<String>(.., ALL).unwrap();
                    assert!(entries.len() <= 1, "at {at}");
                }
                Err(StoreError::Damaged { .. } | StoreError::Format { .. }) => {
                    assert_eq!(fs::read(scratch.file()).unwrap(), damaged, "at {at}");
                }
                Err(other) => panic!("at {at}: {other}"),
            }
        }
    }

    #[test]
    fn a_later_format_is_refused() {
        let scratch = Scratch::new("store-format");
        let store = Store::open(&scratch.0).unwrap();
        store.put("format", &2_u32).unwrap();
        drop(store);
        assert!(matches!(
            Store::open(&scratch.0),
            Err(StoreError::Format { found: 2, .. })
        ));
    }
}
