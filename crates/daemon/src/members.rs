//! The membership documents of a node's volumes: `members/VOLUME` in the state directory, one file each, written beside and
//! renamed. What a document says follows from [`driftless_core::membership`]; here it is signed, checked and kept.
//!
//! [`Membership`] is what all threads of a node share. Its lock may be taken while the node's is held, never the other way round.

use crossbeam_channel::Sender;
use driftless_core::membership::{Action, DOCUMENT_LEN_MAX, Key, Members, NotMerged, Signature, View};
use driftless_net::identity::{Identity, PublicKey};
use driftless_node::trust::{Notary, Trust};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const DIR: &str = "members";

/// The node's key, for engines.
struct Signer(Identity);

impl Notary for Signer {
    fn sign(&self, bytes: &[u8]) -> Signature {
        Signature(self.0.sign(bytes))
    }

    fn verify(&self, key: &Key, bytes: &[u8], signature: &Signature) -> bool {
        verify(key, bytes, signature)
    }
}

/// See the module.
pub(crate) struct Membership {
    identity: Arc<Signer>,
    book: Mutex<Book>,
    trusts: Mutex<BTreeMap<u128, Arc<Trust>>>,
    /// Something has changed: what follows for this node is to be done.
    changed: Sender<()>,
}

impl Membership {
    pub(crate) fn new(identity: Identity, book: Book, changed: Sender<()>) -> Membership {
        let trusts = Mutex::new(BTreeMap::new());
        Membership { identity: Arc::new(Signer(identity)), book: Mutex::new(book), trusts, changed }
    }

    /// This node's key.
    pub(crate) fn own(&self) -> Key {
        Key(self.identity.0.public().0)
    }

    /// A volume's document, if anything is known of its members.
    pub(crate) fn document(&self, volume: u128) -> Option<Document> {
        self.book().get(volume).cloned()
    }

    /// Its bytes.
    pub(crate) fn document_bytes(&self, volume: u128) -> Option<Arc<Vec<u8>>> {
        self.book().get(volume).map(|d| d.bytes.clone())
    }

    /// What it says; nothing if nothing is known.
    pub(crate) fn view(&self, volume: u128) -> Arc<View> {
        self.book().get(volume).map(|d| d.view.clone()).unwrap_or_default()
    }

    /// The same for the volume's engine.
    pub(crate) fn trust(&self, volume: u128) -> Arc<Trust> {
        let view = self.view(volume);
        let trust = self
            .trusts()
            .entry(volume)
            .or_insert_with(|| Arc::new(Trust::new(self.identity.clone())))
            .clone();
        trust.set(view);
        trust
    }

    /// Signs changes of this node and writes them down, all or none.
    pub(crate) fn change(&self, volume: u128, actions: Vec<Action>) -> io::Result<()> {
        self.book().change(volume, &self.identity.0, actions)?;
        self.tell(volume);
        Ok(())
    }

    /// Takes what another member has.
    pub(crate) fn learn(&self, volume: u128, bytes: &[u8]) -> Result<(), NotLearnt> {
        if self.book().learn(volume, bytes)? {
            self.tell(volume);
        }
        Ok(())
    }

    /// Takes what a key says that is known to nobody here, if it has taken the place of a member's key: it proves so by the
    /// document itself, whose changes are signed. Nothing else is taken from it.
    pub(crate) fn learn_of_heir(&self, volume: u128, bytes: &[u8], key: Key) -> Result<(), NotLearnt> {
        if self.book().learn_of_heir(volume, bytes, key)? {
            self.tell(volume);
        }
        Ok(())
    }

    /// What shows that this node's key has taken another's place, if it has.
    pub(crate) fn succession(&self, volume: u128) -> Option<Arc<Vec<u8>>> {
        let document = self.document(volume)?;
        let own = self.own();
        let has =
            document.view.removed.values().any(|removed| heir(&document.view, removed.now) == Some(own));
        has.then_some(document.bytes)
    }

    /// Forgets a volume.
    pub(crate) fn forget(&self, volume: u128) -> io::Result<()> {
        self.trusts().remove(&volume);
        self.book().forget(volume)
    }

    fn tell(&self, volume: u128) {
        self.trust(volume);
        self.wake();
    }

    /// Has the node look at once.
    pub(crate) fn wake(&self) {
        // Full: it is about to look anyway.
        let _ = self.changed.try_send(());
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A document is replaced as a whole, after it was written.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trusts(&self) -> MutexGuard<'_, BTreeMap<u128, Arc<Trust>>> {
        // A map is whole between two calls.
        self.trusts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One volume's document, and what follows from it.
#[derive(Clone)]
pub(crate) struct Document {
    members: Members,
    pub(crate) view: Arc<View>,
    pub(crate) bytes: Arc<Vec<u8>>,
}

impl Document {
    fn new(members: Members) -> Document {
        let (view, bytes) = (Arc::new(members.view()), Arc::new(members.encode()));
        Document { members, view, bytes }
    }

    /// The last change of a key that is known.
    pub(crate) fn last_seq(&self, key: Key) -> u64 {
        self.members.last_seq(key)
    }
}

/// Why a document of another site was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotLearnt {
    #[error(transparent)]
    Refused(#[from] NotMerged),
    #[error("its key has not taken the place of a member's")]
    NoHeir,
    #[error("the membership cannot be written down in the node's state, mend that: {0}")]
    Io(#[from] io::Error),
}

/// All documents of a node.
pub(crate) struct Book {
    dir: PathBuf,
    documents: BTreeMap<u128, Document>,
}

impl Book {
    /// What is kept in a state directory.
    pub(crate) fn load(state: &Path) -> io::Result<Book> {
        let dir = state.join(DIR);
        let mut documents = BTreeMap::new();
        let listed = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Book { dir, documents }),
            other => other?,
        };
        for entry in listed {
            let entry = entry?;
            let name = entry.file_name();
            let Some(volume) = name.to_str().and_then(|n| u128::from_str_radix(n, 16).ok()) else { continue };
            let mut bytes = Vec::new();
            File::open(entry.path())?.take(DOCUMENT_LEN_MAX as u64 + 1).read_to_end(&mut bytes)?;
            let members = Members::decode(&bytes).ok().filter(|m| m.volume() == volume);
            let members = members.ok_or_else(|| {
                let text = format!(
                    "{} is damaged: remove it, it comes again from other sites",
                    entry.path().display()
                );
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
            documents.insert(volume, Document::new(members));
        }
        Ok(Book { dir, documents })
    }

    /// A volume's document, if anything is known of its members.
    pub(crate) fn get(&self, volume: u128) -> Option<&Document> {
        self.documents.get(&volume)
    }

    /// Signs changes of this node and writes them down, all or none.
    pub(crate) fn change(&mut self, volume: u128, own: &Identity, actions: Vec<Action>) -> io::Result<()> {
        let mut members =
            self.documents.get(&volume).map_or_else(|| Members::new(volume), |d| d.members.clone());
        for action in actions {
            let unsigned = members.next(Key(own.public().0), action);
            let signature = Signature(own.sign(&unsigned.bytes()));
            members.add(unsigned.signed(signature));
        }
        self.keep(members)
    }

    /// Takes what another member has. True if something was new.
    pub(crate) fn learn(&mut self, volume: u128, bytes: &[u8]) -> Result<bool, NotLearnt> {
        let mut members =
            self.documents.get(&volume).map_or_else(|| Members::new(volume), |d| d.members.clone());
        let new = members.merge(bytes, &verify)?;
        if new {
            self.keep(members)?;
        }
        Ok(new)
    }

    /// See [`Membership::learn_of_heir`].
    pub(crate) fn learn_of_heir(&mut self, volume: u128, bytes: &[u8], key: Key) -> Result<bool, NotLearnt> {
        let Some(known) = self.documents.get(&volume) else { return Err(NotLearnt::NoHeir) };
        let mut members = known.members.clone();
        if !members.merge(bytes, &verify)? {
            return Err(NotLearnt::NoHeir);
        }
        let view = members.view();
        let is_heir =
            |old: &Key| view.removed.get(old).is_some_and(|removed| heir(&view, removed.now) == Some(key));
        if !view.members.contains_key(&key) || !known.view.members.keys().any(is_heir) {
            return Err(NotLearnt::NoHeir);
        }
        self.keep(members)?;
        Ok(true)
    }

    /// Forgets a volume.
    pub(crate) fn forget(&mut self, volume: u128) -> io::Result<()> {
        self.documents.remove(&volume);
        match fs::remove_file(self.path(volume)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn keep(&mut self, members: Members) -> io::Result<()> {
        let document = Document::new(members);
        fs::create_dir_all(&self.dir)?;
        let path = self.path(document.members.volume());
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&document.bytes)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&self.dir)?.sync_all()?;
        self.documents.insert(document.members.volume(), document);
        Ok(())
    }

    fn path(&self, volume: u128) -> PathBuf {
        self.dir.join(format!("{volume:032x}"))
    }
}

/// The key that a site has in the end, after it has changed it.
pub(crate) fn heir(view: &View, mut key: Option<Key>) -> Option<Key> {
    // Each step is another key.
    for _ in 0..=view.removed.len() {
        match view.removed.get(&key?) {
            Some(removed) => key = removed.now,
            None => return key,
        }
    }
    None
}

fn verify(key: &Key, bytes: &[u8], signature: &Signature) -> bool {
    PublicKey(key.0).verify(bytes, &signature.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftless_core::link::Role;
    use driftless_core::membership::Rights;

    /// A key that took the place of a member's shows so by itself; any other key shows nothing, whatever it says.
    #[test]
    fn only_heirs_of_members_are_heard() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let identity = || Identity::generate().unwrap();
        let key = |identity: &Identity| Key(identity.public().0);
        let (oslo, bergen, next, stranger) = (identity(), identity(), identity(), identity());
        let put = |identity: &Identity, site: &str| Action::Put {
            key: key(identity),
            site: site.into(),
            rights: Rights { role: Role::Writer, may_relay: true, may_invite: true },
            addresses: Vec::new(),
        };
        let mut book = Book::load(a.path()).unwrap();
        book.change(7, &oslo, vec![Action::Found { site: "oslo".into() }, put(&bergen, "bergen")]).unwrap();
        let mut other = Book::load(b.path()).unwrap();
        let before = book.get(7).unwrap().bytes.clone();
        other.learn(7, &before).unwrap();

        // While bergen is away, oslo gets another key, and admits somebody.
        let bytes = driftless_core::membership::rekey_bytes(7, key(&oslo), key(&next));
        let proof = Signature(next.sign(&bytes));
        book.change(7, &oslo, vec![Action::Rekey { key: key(&next), proof }]).unwrap();
        book.change(7, &next, vec![put(&stranger, "tromso")]).unwrap();
        let document = book.get(7).unwrap().bytes.clone();
        let no_heir = |result| matches!(result, Err(NotLearnt::NoHeir));
        assert!(no_heir(other.learn_of_heir(7, &document, key(&stranger))), "a member, but nobody's heir");
        assert!(no_heir(other.learn_of_heir(7, &document, key(&oslo))), "the old key is nobody");
        assert!(no_heir(other.learn_of_heir(7, &before, key(&next))), "it does not say so");
        assert!(no_heir(other.learn_of_heir(8, &document, key(&next))));
        let mut forged = document.to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(other.learn_of_heir(7, &forged, key(&next)).is_err());
        assert_eq!(other.get(7).unwrap().bytes, before, "nothing was taken");
        assert!(other.learn_of_heir(7, &document, key(&next)).unwrap());
        assert_eq!(other.get(7).unwrap().view, book.get(7).unwrap().view);
    }

    #[test]
    fn documents_survive_and_are_joined() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (oslo, bergen) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let mut book = Book::load(a.path()).unwrap();
        let rights = Rights { role: Role::Writer, may_relay: true, may_invite: false };
        let put = Action::Put {
            key: Key(bergen.public().0),
            site: "bergen".into(),
            rights,
            addresses: vec!["192.0.2.2:7440".into()],
        };
        book.change(7, &oslo, vec![Action::Found { site: "oslo".into() }, put]).unwrap();
        let mut other = Book::load(b.path()).unwrap();
        let bytes = book.get(7).unwrap().bytes.clone();
        assert!(other.learn(7, &bytes).unwrap());
        assert!(!other.learn(7, &bytes).unwrap());
        assert!(matches!(other.learn(8, &bytes), Err(NotLearnt::Refused(NotMerged::OtherVolume))));
        other.change(7, &bergen, vec![Action::At(vec!["192.0.2.3:7440".into()])]).unwrap();
        assert!(book.learn(7, &other.get(7).unwrap().bytes).unwrap());
        let back = Book::load(a.path()).unwrap();
        let view = &back.get(7).unwrap().view;
        assert_eq!(view.at_site("bergen").unwrap().1.addresses, ["192.0.2.3:7440"]);
        assert_eq!(back.get(7).unwrap().last_seq(Key(bergen.public().0)), 1);
        let mut forged = bytes.to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(matches!(other.learn(7, &forged), Err(NotLearnt::Refused(NotMerged::Forged))));
        other.forget(7).unwrap();
        assert!(Book::load(b.path()).unwrap().get(7).is_none());
        fs::write(a.path().join(DIR).join(format!("{:032x}", 9)), "nonsense").unwrap();
        assert!(Book::load(a.path()).is_err());
    }
}
