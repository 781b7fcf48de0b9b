//! Which objects are fetched, because something began to refer to them that nobody held.

use std::{collections::BTreeSet, time::Instant};

use kubeedge_core::{
    id::{NodeName, check_subdomain},
    message::{Object, ObjectRef},
};

use super::{FETCHED, SERVICES, State, WATCHED};
use crate::controller::{Kind, WORTH_A_WARNING};

/// An operator is reminded of an object that cannot be read after so many failures more: half an hour at the longest pause.
const REMIND_EVERY: u32 = 64;

impl State {
    /// Whether it is known what refers to the kinds that are fetched, so that they may be listed.
    pub(in crate::edgecontroller) fn may_list_fetched(&self) -> bool {
        // A Service refers to nothing.
        let refers = |kind: &&Kind| !FETCHED.contains(kind) && **kind != SERVICES;
        WATCHED.iter().filter(refers).all(|kind| self.placement.is_listed(kind))
    }

    /// What to fetch next, if it may be done at once.
    pub(in crate::edgecontroller) fn poll_fetch(&mut self, now: Instant) -> Option<(Kind, ObjectRef)> {
        self.note_fetches(now);
        loop {
            let (reference, ()) = self.fetches.poll_write(now)?;
            let kind = FETCHED.into_iter().find(|kind| kind.is_of(&reference));
            match kind.filter(|_| self.placement.is_missing(&reference)) {
                // What is fetched is in a namespace.
                Some(kind) if is_name(&reference) && !reference.namespace().is_empty() => {
                    return Some((kind, reference));
                }
                Some(_) => {
                    self.fetches.succeeded(&reference);
                    self.placement.handle_fetched(&reference, None);
                }
                // It came by the watch, or nothing refers to it any more.
                None => self.fetches.succeeded(&reference),
            }
        }
    }

    fn note_fetches(&mut self, now: Instant) {
        while let Some(reference) = self.placement.poll_fetch() {
            self.fetches.put(reference, (), now);
        }
    }

    /// Takes what the API answered: how the object is, that there is none, or why that is not known.
    pub(in crate::edgecontroller) fn handle_fetched(
        &mut self,
        reference: &ObjectRef,
        fetched: Result<Option<Object>, String>,
        now: Instant,
    ) {
        self.note_fetches(now);
        match fetched {
            // It was given up and wanted again meanwhile, or everything was listed: the answer is from before.
            Ok(_) if self.fetches.is_waiting(reference) => self.fetches.succeeded(reference),
            Ok(object) => {
                self.fetches.succeeded(reference);
                self.placement.handle_fetched(reference, object);
            }
            Err(why) => {
                let failures = self.fetches.failed(reference, (), now);
                let given_up = failures >= WORTH_A_WARNING && self.placement.handle_unfetched(reference);
                if given_up || failures % REMIND_EVERY == REMIND_EVERY - 1 {
                    tracing::warn!(%reference, %why, "an object that pods need cannot be read; nodes keep what they have of it");
                } else {
                    tracing::debug!(%reference, %why, "an object will be read again");
                }
            }
        }
    }

    /// Whether pods are held back until this is known.
    #[cfg(test)]
    pub(in crate::edgecontroller) fn is_awaited(&self, reference: &ObjectRef) -> bool {
        self.placement.is_awaited(reference)
    }

    #[cfg(test)]
    pub(in crate::edgecontroller) fn placement(&self) -> &crate::controller::Placement {
        &self.placement
    }

    /// What the node needs and is not known.
    pub(in crate::edgecontroller) fn unknown(&self, node: &NodeName) -> BTreeSet<ObjectRef> {
        self.placement.unknown(node)
    }

    /// How many objects could not be read for so long that nobody waits for them.
    pub(in crate::edgecontroller) fn unread(&self) -> usize {
        self.placement.unread()
    }

    /// Whether all that the node needs is known, but for what could not be read for so long that nobody waits for it.
    pub(in crate::edgecontroller) fn is_settled(&self, node: &NodeName) -> bool {
        self.placement.is_settled(node) && !self.nodes.is_unlisted(node)
    }
}

/// Whether an object can be called so, in a namespace or in none. Whoever wrote the reference chose the names, and nothing has
/// checked them.
pub(super) fn is_name(reference: &ObjectRef) -> bool {
    let namespace = reference.namespace();
    check_subdomain("object name", reference.name()).is_ok()
        && (namespace.is_empty() || check_subdomain("namespace", namespace).is_ok())
}
