//! Names that people gave to sites, by replica: for messages and listings only, nothing is decided by
//! them. Rows of [`Table::Settings`]: `site/` and the replica's eight bytes -> the name.

use driftless_core::id::ReplicaId;
use driftless_core::rows::Table;
use driftless_core::tx::{Result, Tx};

const PREFIX: &[u8] = b"site/";

/// The name of the site that `replica` is at, if it is known.
pub fn name(tx: &Tx<'_>, replica: ReplicaId) -> Result<Option<String>> {
    let value = tx.get(Table::Settings, &key(replica))?;
    Ok(value.map(|b| String::from_utf8_lossy(&b).into_owned()))
}

/// Notes the name of the site that `replica` is at. Makes no row if it is already so.
pub fn set_name(tx: &mut Tx<'_>, replica: ReplicaId, site: &str) -> Result<()> {
    if name(tx, replica)?.as_deref() != Some(site) {
        tx.put(Table::Settings, key(replica), Some(site.as_bytes().to_vec()));
    }
    Ok(())
}

fn key(replica: ReplicaId) -> Vec<u8> {
    [PREFIX, &replica.0.to_be_bytes()].concat()
}
