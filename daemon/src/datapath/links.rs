//! Programs on interfaces: attached first in line by tcx (Linux 6.6), pinned, replaced in one step.

use super::{
    Datapath, DatapathError,
    pins::{self, release, unpin},
    sys,
};
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, LinkError, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};
use std::path::Path;

/// A place where packets meet a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    FromPod,
    ToPod,
    FromUplink,
    ToUplink,
}

impl Hook {
    pub const ALL: [Self; 4] = [Self::FromPod, Self::ToPod, Self::FromUplink, Self::ToUplink];

    /// Of the program, its pin, and the end of its links' pins.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
        }
    }

    fn side(self) -> TcAttachType {
        match self {
            Self::FromPod | Self::FromUplink => TcAttachType::Ingress,
            Self::ToPod | Self::ToUplink => TcAttachType::Egress,
        }
    }
}

impl Datapath {
    /// Attaches both hooks of an uplink and pins the links; replaces the programs where they are attached already.
    pub fn attach_uplink(&mut self, ifname: &str, ifindex: u32) -> Result<(), DatapathError> {
        self.attach(ifname, ifindex, Hook::FromUplink)?;
        self.attach(ifname, ifindex, Hook::ToUplink)
    }

    /// Succeeds also when there is nothing attached. `FromUplink` last: while it is there, there is something to detach.
    pub fn detach_uplink(&mut self, ifname: &str) -> Result<(), DatapathError> {
        release(&self.pins.link(ifname, Hook::ToUplink))?;
        release(&self.pins.link(ifname, Hook::FromUplink))
    }

    /// Every pinned link whose interface is there.
    pub fn links_pinned(&self) -> Result<Vec<(String, Hook)>, DatapathError> {
        let mut alive = Vec::new();
        for (ifname, hook) in self.pins.all_links()? {
            if !matches!(interface(&self.pins.link(&ifname, hook))?, None | Some(0)) {
                alive.push((ifname, hook));
            }
        }
        Ok(alive)
    }

    pub(super) fn attach(&mut self, ifname: &str, ifindex: u32, hook: Hook) -> Result<(), DatapathError> {
        let path = self.pins.link(ifname, hook);
        match interface(&path)? {
            Some(found) if found == ifindex => return self.update(&path, hook),
            // Of an interface of that name that is gone.
            Some(_) => release(&path)?,
            None => {}
        }
        let program = self.program(hook)?;
        let failed = |source| failed(ifname, hook, source);
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(ifname, hook.side(), options).map_err(failed)?;
        let link: FdLink = program
            .take_link(id)
            .map_err(failed)?
            .try_into()
            .map_err(|e: LinkError| DatapathError::Other(format!("{hook:?} on {ifname}: {e}")))?;
        link.pin(&path).map_err(|e| pins::error("cannot pin", &path, std::io::Error::other(e)))?;
        match interface(&path)? {
            Some(found) if found == ifindex => Ok(()),
            _ => {
                release(&path)?;
                Err(DatapathError::Other(format!("{ifname} is no longer interface {ifindex}")))
            }
        }
    }

    /// Points every pinned link to this object's programs; forgets those whose interface is gone.
    pub(super) fn update_links(&mut self) -> Result<(), DatapathError> {
        let mut links = self.pins.all_links()?;
        // Who reads notes goes before who writes them: it knows those of the programs before, which do not know its own.
        links.sort_by_key(|(_, hook)| *hook != Hook::ToUplink);
        for (ifname, hook) in links {
            let path = self.pins.link(&ifname, hook);
            match interface(&path)? {
                None | Some(0) => unpin(&path)?,
                Some(_) => self.update(&path, hook)?,
            }
        }
        Ok(())
    }

    /// One step: there is no moment without a program, nor with two.
    fn update(&mut self, path: &Path, hook: Hook) -> Result<(), DatapathError> {
        let pinned = |e: LinkError| pins::error("cannot adopt", path, std::io::Error::other(e));
        let link: SchedClassifierLink =
            FdLink::from(PinnedLink::from_pin(path).map_err(pinned)?).try_into().map_err(pinned)?;
        let program = self.program(hook)?;
        let failed = |source| failed(&path.display().to_string(), hook, source);
        let id = program.attach_to_link(link).map_err(failed)?;
        // Held by its pin from here on.
        program.take_link(id).map(drop).map_err(failed)
    }

    fn program(&mut self, hook: Hook) -> Result<&mut SchedClassifier, DatapathError> {
        program(&mut self.object, hook)
    }
}

pub(super) fn program(object: &mut aya::Ebpf, hook: Hook) -> Result<&mut SchedClassifier, DatapathError> {
    let program = object
        .program_mut(hook.name())
        .ok_or_else(|| DatapathError::Other(format!("the object has no program {}", hook.name())))?;
    program
        .try_into()
        .map_err(|source| DatapathError::Program { what: format!("program {}", hook.name()), source })
}

fn interface(path: &Path) -> Result<Option<u32>, DatapathError> {
    sys::pinned_link_interface(path).map_err(|e| pins::error("cannot read", path, e))
}

fn failed(place: &str, hook: Hook, source: ProgramError) -> DatapathError {
    DatapathError::Program { what: format!("attaching {} to {place}", hook.name()), source }
}
