//! Joining: by an invitation, a volume from its members; what would be if it were done; and from whom contents come first.

use super::commands::other_version;
use super::{Shared, lock, now_s};
use crate::config::check_name;
use crate::control::{Answer, Offer, OfferedVolume};
use crate::link;
use crate::log;
use crate::preface::{MemberInfo, Request, Response, VolumeInfo};
use crate::records::{self, Mode, Volume};
use crate::settings::VolumeSettings;
use crate::token::{NoToken, Token};
use driftless_node::api::{Level, PathText};
use driftless_node::query::Cursor;
use driftless_node::replica::{Replica, ReplicaStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// When the site that contents are to come from first cannot be reached for so long, they come from the others.
const SEED_PATIENCE: Duration = Duration::from_secs(60);

impl Shared {
    /// The invitation, if this site may use it, as far as that is known here.
    fn invited_by(&self, token: &str) -> Result<Token, Answer> {
        let token: Token =
            token.parse().map_err(|e: NoToken| Answer::failed(e.to_string(), "copy the whole line"))?;
        if token.key == self.key {
            return Err(Answer::failed(
                "this invitation was given by this very site",
                "use it at another site",
            ));
        }
        let (own, known, count) = {
            let records = &self.lock().records;
            let known = records.sites.get(&token.name).map(records::Site::key);
            (records.name.clone().unwrap_or_default(), known, records.sites.len() + 1)
        };
        if known.is_some_and(|key| key != Some(token.key)) || token.name == own {
            return Err(Answer::failed(
                format!("a site named {} is known here already", token.name),
                "remove it first (driftless site remove), or give this site another name",
            ));
        }
        if known.is_none() && count >= self.max_sites() {
            return Err(self.too_many(count));
        }
        Ok(token)
    }

    pub(super) fn too_many(&self, count: usize) -> Answer {
        Answer::failed(
            format!(
                "this site knows {count} sites already, itself included; its limit is {}",
                self.max_sites()
            ),
            "raise max_sites in its configuration, or remove a site that is gone",
        )
    }

    /// Asks the site that has given an invitation.
    fn ask_inviter(&self, token: &Token, request: &Request) -> Result<Response, Answer> {
        let asked = link::ask_site(&self.tls, &token.addresses, token.key, request).map_err(|why| {
            Answer::failed(
                format!("{} cannot be reached: {why}", token.name),
                "check that driftless serve runs there and that its port can be reached from here",
            )
        })?;
        match asked {
            Response::Refused { why, .. } => Err(Answer::failed(
                format!("{} refuses: {why}", token.name),
                "ask for a new invitation there: driftless site invite",
            )),
            response => Ok(response),
        }
    }

    fn ask_preview(
        &self,
        token: &Token,
        volume: Option<String>,
        after: Option<Cursor>,
    ) -> Result<Response, Answer> {
        let name = self.lock().records.name.clone().unwrap_or_default();
        self.ask_inviter(token, &Request::Preview { secret: token.secret.to_string(), name, volume, after })
    }

    /// What an invitation offers, and a part of what one of its volumes shows. Nothing is changed, here or there.
    pub(super) fn preview_join(
        &self,
        token: &str,
        wanted: Option<(String, PathText)>,
        after: Option<Cursor>,
    ) -> Result<Answer, Answer> {
        let token = self.invited_by(token)?;
        let name = wanted.as_ref().map(|(name, _)| name.clone());
        let Response::Preview { name: site, volumes, page } =
            self.ask_preview(&token, name.clone(), after)?
        else {
            return Err(other_version());
        };
        if let Some((name, root)) = wanted {
            let id = volumes.iter().find(|v| v.name == name).and_then(VolumeInfo::number);
            self.check_root(&root, id)?;
        }
        let volumes = volumes.into_iter().map(|v| OfferedVolume {
            name: v.name,
            follower: v.follower,
            members: v.members.into_iter().map(|m| m.site).collect(),
        });
        Ok(Answer::Offer(Box::new(Offer { site, volumes: volumes.collect(), page })))
    }

    pub(super) fn join(
        &self,
        token: &str,
        wanted: &[(String, PathText)],
        seed_from: Option<&str>,
    ) -> Result<Answer, Answer> {
        let token = self.invited_by(token)?;
        let names: Vec<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
        if seed_from.is_some() {
            if names.is_empty() {
                return Err(Answer::failed(
                    "--seed-from says from where a volume comes first, and none is to come",
                    "name it and its directory, too: --dir VOLUME=DIR",
                ));
            }
            // Before the invitation is used up.
            let Response::Preview { volumes, .. } = self.ask_preview(&token, None, None)? else {
                return Err(other_version());
            };
            self.seed(&volumes, &names, seed_from)?;
        }
        let own = self.lock().records.name.clone().unwrap_or_default();
        let addresses = lock(&self.advertise).iter().map(ToString::to_string).collect();
        let request = Request::Join { secret: token.secret.to_string(), name: own, addresses };
        let (name, volumes) = match self.ask_inviter(&token, &request)? {
            Response::Joined { name, volumes } if name == token.name => (name, volumes),
            _ => return Err(other_version()),
        };
        self.change(|records| {
            let addresses = token.addresses.iter().map(ToString::to_string).collect();
            let site = records::Site { key: token.key.to_string(), addresses, joined_s: now_s() };
            records.sites.insert(name.clone(), site);
            Ok(())
        })?;
        let seed = self.seed(&volumes, &names, seed_from)?;
        let mut text = format!("joined {name}");
        for (volume, root) in wanted {
            let Some(info) = volumes.iter().find(|v| v.name == *volume) else {
                return Err(Answer::failed(
                    format!("{text}, but the invitation is not for a volume {volume}"),
                    format!("link it there: driftless link create {volume} --to <this site>"),
                ));
            };
            self.have_volume(info, root.clone(), (&name, seed.clone()), VolumeSettings::default())?;
            text += &format!("; volume {volume} comes to {}", root.text);
            if let Some(seed) = &seed {
                text += &format!(", from {} first", seed.site);
            }
        }
        let others: Vec<&str> =
            volumes.iter().map(|v| v.name.as_str()).filter(|v| !wanted.iter().any(|(w, _)| w == v)).collect();
        if !others.is_empty() {
            text += &format!("; to have {}: driftless volume add NAME DIR --from {name}", others.join(", "));
        }
        Ok(Answer::Done(text))
    }

    /// The member that contents are to come from first. It must have all of the volumes.
    pub(super) fn seed(
        &self,
        volumes: &[VolumeInfo],
        wanted: &[&str],
        seed_from: Option<&str>,
    ) -> Result<Option<MemberInfo>, Answer> {
        let Some(site) = seed_from else { return Ok(None) };
        let mut found = None;
        for info in volumes.iter().filter(|v| wanted.contains(&v.name.as_str())) {
            let member = info.members.iter().find(|m| m.site == site && m.key != self.key.to_string());
            found = Some(member.cloned().ok_or_else(|| not_a_member(site, info))?);
        }
        found.map(Some).ok_or_else(|| {
            Answer::failed(
                format!("the invitation is not for a volume {}", wanted.join(", ")),
                "name a volume that it is for: driftless site join TOKEN --dry-run shows which",
            )
        })
    }

    /// A volume that another site has, linked to that site, and to the one that contents come from first.
    pub(super) fn have_volume(
        &self,
        info: &VolumeInfo,
        root: PathText,
        (from, seed): (&str, Option<MemberInfo>),
        settings: VolumeSettings,
    ) -> Result<(), Answer> {
        let Some(id) = info.number() else {
            return Err(Answer::failed(
                "the other site names a volume that cannot be",
                "install the same version",
            ));
        };
        check_name(&info.name).map_err(|what| Answer::failed(what, "the other site names it so"))?;
        self.check_root(&root, Some(id))?;
        let mode = if info.follower { Mode::ActivePassive } else { Mode::ActiveActive };
        let link = records::Link { mode, created_s: now_s(), ..records::Link::default() };
        let mut links = BTreeMap::from([(from.to_owned(), link.clone())]);
        if let Some(member) = &seed {
            self.know(member)?;
            links.insert(member.site.clone(), link);
        }
        let told = VolumeSettings { filter: info.filter.clone(), ..VolumeSettings::default() };
        told.check()
            .map_err(|what| Answer::failed(what, format!("correct it at {from}: driftless link create")))?;
        let (id, settings) = (format!("{id:032x}"), settings.or(told));
        let (follower, declined) = (info.follower, BTreeSet::new());
        let seed_from = seed.map(|member| member.site);
        let volume = Volume { id, root, first: false, follower, links, settings, declined, seed_from };
        self.record_volume(&info.name, volume)
    }

    /// Notes a site that another has told of, as the membership would.
    fn know(&self, member: &MemberInfo) -> Result<(), Answer> {
        let wrong = |what: String| Answer::failed(what, "name another site, or leave --seed-from out");
        check_name(&member.site).map_err(wrong)?;
        self.change(|records| {
            let count = records.sites.len() + 1;
            match records.sites.get(&member.site) {
                Some(known) if known.key != member.key => {
                    Err(wrong(format!("{} is known here with another key", member.site)))
                }
                Some(_) => Ok(()),
                None if count >= self.max_sites() => Err(self.too_many(count)),
                None => {
                    let (key, addresses) = (member.key.clone(), member.addresses.clone());
                    let site = records::Site { key, addresses, joined_s: now_s() };
                    records.sites.insert(member.site.clone(), site);
                    Ok(())
                }
            }
        })
    }

    /// Ends the time in which a volume comes from one site only: everything that this one has is here, or it cannot be
    /// reached.
    pub(super) fn note_seeded(&self) {
        let mut over = Vec::new();
        {
            let inner = self.lock();
            for (name, volume) in &inner.records.volumes {
                let Some(seed) = &volume.seed_from else { continue };
                if !volume.links.contains_key(seed) {
                    over.push((name.clone(), format!("{seed} is not linked any more")));
                    continue;
                }
                let Some(running) = inner.volumes.get(name) else { continue };
                let Some(seen) = running.links.get(seed).map(link::LinkThread::seen) else { continue };
                let status = lock(&running.replica).as_ref().map(Replica::status);
                if status.is_some_and(|status| has_all_of(&status, seen.connected)) {
                    over.push((name.clone(), format!("everything that {seed} has is here")));
                } else if seen.down_since.is_some_and(|since| since.elapsed() >= SEED_PATIENCE) {
                    over.push((
                        name.clone(),
                        format!("{seed} cannot be reached: contents come from others, too"),
                    ));
                }
            }
        }
        for (name, why) in over {
            let noted = self.change(|records| {
                if let Some(volume) = records.volumes.get_mut(&name) {
                    volume.seed_from = None;
                }
                Ok(())
            });
            // Tried again by the next round.
            if noted.is_ok() {
                log::line(Level::Info, &why, &[("volume", &name)]);
            }
        }
    }
}

/// True if everything that the peer at the other end of a link has is here.
fn has_all_of(status: &ReplicaStatus, link: Option<driftless_node::replica::LinkId>) -> bool {
    let peer = status.standing.peers.iter().find(|p| p.link.is_some() && p.link == link);
    status.scanned && status.idle && peer.is_some_and(|p| p.taken_all)
}

fn not_a_member(site: &str, info: &VolumeInfo) -> Answer {
    let names: Vec<&str> = info.members.iter().map(|m| m.site.as_str()).collect();
    Answer::failed(
        format!("{site} is no member of volume {}; its members are: {}", info.name, names.join(", ")),
        "name one of these with --seed-from; nothing was changed, and the invitation is still good",
    )
}

impl VolumeInfo {
    /// Its id, if it is one.
    fn number(&self) -> Option<u128> {
        u128::from_str_radix(&self.id, 16).ok().filter(|id| *id != 0 && self.id.len() <= 32)
    }
}
