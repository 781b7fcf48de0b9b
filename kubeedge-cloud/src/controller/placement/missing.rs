//! What is referred to and not held: it is fetched, and roots wait for it, so that a node is told of a pod when it has been
//! told of what the pod is made of. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kubeedge_core::{id::Uid, message::ObjectRef};

use crate::controller::Kind;

/// The objects that are not held, and who waits for them.
#[derive(Debug, Default)]
pub(super) struct Missing {
    objects: BTreeMap<ObjectRef, Waiting>,
    /// Which object each root waits for: the first of several.
    roots: BTreeMap<ObjectRef, ObjectRef>,
    to_ask: VecDeque<ObjectRef>,
    /// How many of the objects nobody should wait for.
    late: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    asked: bool,
    /// It cannot be had for so long that nobody should wait for it any longer.
    late: bool,
    /// The API said meanwhile that the one of this UID is gone.
    gone: Option<Uid>,
    roots: BTreeSet<ObjectRef>,
}

impl Missing {
    /// Something refers to an object that is not held; it is asked for at once, or when its kind has been listed.
    pub(super) fn add(&mut self, reference: &ObjectRef, ask: bool) {
        self.objects.entry(reference.clone()).or_default();
        if ask && !self.is_asked(reference) {
            self.ask_again(reference);
        }
    }

    /// Asks for it, also if it was asked for before.
    pub(super) fn ask_again(&mut self, reference: &ObjectRef) {
        if let Some(waiting) = self.objects.get_mut(reference) {
            waiting.asked = true;
            self.to_ask.push_back(reference.clone());
        }
    }

    /// Whether somebody was asked for it.
    pub(super) fn is_asked(&self, reference: &ObjectRef) -> bool {
        self.objects.get(reference).is_some_and(|waiting| waiting.asked)
    }

    /// What to ask for next.
    pub(super) fn poll_ask(&mut self) -> Option<ObjectRef> {
        let objects = &self.objects;
        std::iter::from_fn(|| self.to_ask.pop_front()).find(|reference| objects.contains_key(reference))
    }

    /// Whether it is not known yet what the object is, if it exists.
    pub(super) fn contains(&self, reference: &ObjectRef) -> bool {
        self.objects.contains_key(reference)
    }

    /// Whether a root should wait for it.
    pub(super) fn is_awaited(&self, reference: &ObjectRef) -> bool {
        self.objects.get(reference).is_some_and(|waiting| !waiting.late)
    }

    /// Whether it could not be had for so long that nobody should wait for it.
    pub(super) fn is_late(&self, reference: &ObjectRef) -> bool {
        self.objects.get(reference).is_some_and(|waiting| waiting.late)
    }

    /// How many are.
    pub(super) fn late(&self) -> usize {
        self.late
    }

    /// Whether nothing is missing.
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Those of a kind.
    pub(super) fn of_kind(&self, kind: &Kind) -> Vec<ObjectRef> {
        self.objects.keys().filter(|reference| kind.is_of(reference)).cloned().collect()
    }

    /// The API says that the object is gone: what was asked before may say that it is there.
    pub(super) fn note_gone(&mut self, reference: &ObjectRef, uid: &Uid) {
        if let Some(waiting) = self.objects.get_mut(reference) {
            waiting.gone = Some(uid.clone());
        }
    }

    /// Whether the object of this UID, which was asked for, is known to be gone.
    pub(super) fn is_gone(&self, reference: &ObjectRef, uid: &Uid) -> bool {
        self.objects.get(reference).is_some_and(|waiting| waiting.gone.as_ref() == Some(uid))
    }

    /// The root waits for this object.
    pub(super) fn hold(&mut self, root: &ObjectRef, reference: &ObjectRef) {
        self.let_go(root);
        if let Some(waiting) = self.objects.get_mut(reference) {
            waiting.roots.insert(root.clone());
            self.roots.insert(root.clone(), reference.clone());
        }
    }

    /// The root waits no longer.
    pub(super) fn let_go(&mut self, root: &ObjectRef) {
        if let Some(waiting) = self.roots.remove(root).and_then(|reference| self.objects.get_mut(&reference))
        {
            waiting.roots.remove(root);
        }
    }

    /// The object is known, or is not wanted any more; gives the roots that waited for it.
    pub(super) fn settle(&mut self, reference: &ObjectRef) -> BTreeSet<ObjectRef> {
        let Some(Waiting { roots, late, .. }) = self.objects.remove(reference) else {
            return BTreeSet::new();
        };
        self.late -= usize::from(late);
        roots.iter().for_each(|root| drop(self.roots.remove(root)));
        roots
    }

    /// The object cannot be had for long; gives the roots that waited for it, which need not. `None` if that was known.
    pub(super) fn give_up_waiting(&mut self, reference: &ObjectRef) -> Option<BTreeSet<ObjectRef>> {
        let waiting = self.objects.get_mut(reference).filter(|waiting| !waiting.late)?;
        waiting.late = true;
        self.late += 1;
        let roots = std::mem::take(&mut waiting.roots);
        roots.iter().for_each(|root| drop(self.roots.remove(root)));
        Some(roots)
    }
}
