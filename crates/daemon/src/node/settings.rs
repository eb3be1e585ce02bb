//! What is set of volumes and links: from where it comes to what runs.

use super::commands::no_volume;
use super::{Running, Shared, lock, now_s};
use crate::control::Answer;
use crate::log;
use crate::records::{self, Records, Volume};
use crate::settings::{LinkRules, LinkSettings, VolumeRules, VolumeSettings};
use driftless_node::api::Level;
use std::sync::Once;

/// The day of the week and the minute of the day here, now.
pub(super) fn local_now() -> (u32, u32) {
    let now = i64::try_from(now_s()).unwrap_or(i64::MAX);
    driftless_volume::local_time(now).unwrap_or_default()
}

/// Checks what a command says of a link.
pub(super) fn check_link(settings: &LinkSettings, filter: Option<&str>) -> Result<(), Answer> {
    let wrong = |what| Answer::failed(what, "write it as driftless link create --help shows");
    settings.rules().map_err(wrong)?;
    VolumeSettings { filter: filter.map(str::to_owned), ..VolumeSettings::default() }.check().map_err(wrong)
}

fn env(key: &str) -> Option<String> {
    std::env::var(key).ok()
}

impl Shared {
    /// What is said of a volume beside commands.
    fn given(&self, name: &str) -> VolumeSettings {
        let configured = lock(&self.configured).get(name).cloned().unwrap_or_default();
        let mut from_env = VolumeSettings::of_env(name, &env);
        if let Err(e) = from_env.read_filter() {
            log::line(Level::Warn, &e, &[("volume", name)]);
        }
        from_env.or(configured)
    }

    /// What follows for a volume from all that is set. The configuration was checked when it was read and commands before they
    /// were heeded; what is wrong in the environment is told, and what else is set counts.
    pub(super) fn volume_rules(&self, name: &str, volume: &Volume) -> VolumeRules {
        static TOLD: Once = Once::new();
        let set = self.given(name).or(volume.settings.clone());
        set.rules()
            .or_else(|e| {
                // The environment stays as it is, and this is asked twice a second.
                TOLD.call_once(|| {
                    log::line(Level::Error, &format!("in the environment: {e}"), &[("volume", name)]);
                });
                volume.settings.rules()
            })
            .unwrap_or_else(|_| VolumeRules::none())
    }

    /// What follows for a link.
    pub(super) fn link_rules(&self, volume: &str, site: &str, link: &records::Link) -> LinkRules {
        let configured = lock(&self.configured).get(volume).and_then(|v| v.link.get(site).cloned());
        let given = LinkSettings::of_env(volume, site, &env).or(configured.unwrap_or_default());
        let set = given.or(link.settings.clone());
        set.rules().or_else(|_| link.settings.rules()).unwrap_or_else(|_| LinkRules::none())
    }

    /// Has a volume opened anew if other rules follow from what is set than it was opened with.
    pub(super) fn note_rules(&self, records: &Records, name: &str, running: &mut Running) {
        let (Some(volume), Some(rules)) = (records.volumes.get(name), &running.rules) else { return };
        if *rules != self.volume_rules(name, volume) {
            running.rules = None;
            running.reopen = true;
        }
    }

    /// Keeps what commands have set of a volume.
    pub(super) fn keep_settings(&self, name: &str, settings: VolumeSettings) -> Result<(), Answer> {
        self.change(|records| {
            let volume = records.volumes.get_mut(name).ok_or_else(|| no_volume(name))?;
            volume.settings = settings.or(std::mem::take(&mut volume.settings));
            Ok(())
        })
    }

    pub(super) fn set_volume(&self, name: &str, mut settings: VolumeSettings) -> Result<Answer, Answer> {
        settings.link.clear();
        let wrong = |what| Answer::failed(what, "write it as driftless volume config --help shows");
        settings.read_filter().map_err(wrong)?;
        settings.rules().map_err(wrong)?;
        self.keep_settings(name, settings)?;
        let set = self.lock().records.volumes.get(name).map(|v| v.settings.clone()).unwrap_or_default();
        let given = self.given(name);
        let over = VolumeSettings { link: Default::default(), ..given.clone() } != VolumeSettings::default();
        Ok(Answer::Done(describe(&toml_of(&given.or(set)), over)))
    }

    pub(super) fn set_link(&self, volume: &str, to: &str, settings: LinkSettings) -> Result<Answer, Answer> {
        check_link(&settings, None)?;
        let set = self.change(|records| {
            let known = records.volumes.get_mut(volume).ok_or_else(|| no_volume(volume))?;
            let none = || Answer::failed(format!("{volume} is not linked to {to}"), "driftless link create");
            let link = known.links.get_mut(to).ok_or_else(none)?;
            link.settings = settings.or(std::mem::take(&mut link.settings));
            Ok(link.settings.clone())
        })?;
        let configured = lock(&self.configured).get(volume).and_then(|v| v.link.get(to).cloned());
        let given = LinkSettings::of_env(volume, to, &env).or(configured.unwrap_or_default());
        let over = given != LinkSettings::default();
        Ok(Answer::Done(describe(&toml_of(&given.or(set)), over)))
    }
}

fn toml_of(settings: &impl serde::Serialize) -> String {
    // Settings are texts: there is nothing in them that JSON cannot say.
    let value = serde_json::to_value(settings).unwrap_or_default();
    let fields = value.as_object().cloned().unwrap_or_default();
    let lines = fields.iter().filter(|(key, _)| *key != "link").map(|(key, value)| match value.as_str() {
        Some(text) if text.contains('\n') => format!("{key}: {} lines", text.lines().count()),
        Some(text) => format!("{key}: {text}"),
        None => format!("{key}: {value}"),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn describe(set: &str, over: bool) -> String {
    let set = if set.is_empty() { "nothing is set: defaults" } else { set };
    match over {
        true => format!("{set}\n(what the environment or the configuration says goes first)"),
        false => set.to_owned(),
    }
}
