//! What the membership of a volume says, and the node's key: shared by the daemon, which has them, and the engine, which acts
//! by them.

use driftless_core::membership::{Key, Signature, View};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// Signs as this node, and checks what others have signed.
pub trait Notary: Send + Sync {
    /// This node's signature over `bytes`.
    fn sign(&self, bytes: &[u8]) -> Signature;
    /// Whether `signature` is that of `key` over `bytes`.
    fn verify(&self, key: &Key, bytes: &[u8], signature: &Signature) -> bool;
}

/// The newest view of a volume's membership. Empty while nothing is known: then peers are believed in everything.
#[derive(Default)]
pub struct Trust {
    view: RwLock<Arc<View>>,
    notary: Option<Arc<dyn Notary>>,
}

impl Trust {
    /// With a key: heads are signed, and what peers claim of others is believed as far as these have signed.
    pub fn new(notary: Arc<dyn Notary>) -> Trust {
        Trust { view: RwLock::default(), notary: Some(notary) }
    }

    /// As it is now.
    pub fn view(&self) -> Arc<View> {
        // It is replaced as a whole.
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on.
    pub fn set(&self, view: Arc<View>) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    /// The key, if there is one.
    pub(crate) fn notary(&self) -> Option<&dyn Notary> {
        self.notary.as_deref()
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("view", &self.view).finish_non_exhaustive()
    }
}
