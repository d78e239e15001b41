//! What may go into force: the candidate, less what is wrong with it.
//!
//! ```text
//!              ┌───────────── again, while something moved ────────────┐
//! candidate ─▶ draft ─▶ faults ─▶ each moves one object back ──────────┘
//!                          └─ none left ─▶ in force
//! ```
//! An object moves back at most once: a new or changed one to its previous version (or to none), a deleted one that is
//! still needed back into force. So this ends, and what ends without a fault is consistent.

mod draft;
mod faults;

use crate::Objects;
use bulkhead_api::messages::ObjectError;
use draft::{Draft, Subject};
use std::collections::BTreeSet;

/// The objects to put into force, and why others are not. A refused object keeps its previous version, if it had one;
/// all others go on. With `in_force` admitted before, what is returned is free of contradictions.
pub fn admit(in_force: &Objects, candidate: Objects) -> (Objects, Vec<ObjectError>) {
    let Admitted { objects, errors, .. } = admit_change(in_force, false, candidate);
    (objects, errors)
}

/// What an admission ended with.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    pub objects: Objects,
    pub errors: Vec<ObjectError>,
    /// Not one fault is left in the objects.
    pub clean: bool,
}

/// As [`admit`], at the cost of what differs where `in_force` is known to be `clean`.
pub fn admit_change(in_force: &Objects, clean: bool, candidate: Objects) -> Admitted {
    let mut draft = Draft::new(in_force, candidate, clean);
    let mut errors = BTreeSet::new();
    for _ in 0..=draft.moves_left() {
        if let Some(clean) = round(&mut draft, &mut errors) {
            return Admitted { objects: draft.into_objects(), errors: errors.into_iter().collect(), clean };
        }
    }
    let message =
        "the objects contradict each other in a way that no single refusal mends: all stay as they were";
    errors.insert(ObjectError { file: None, object: None, field: None, message: message.into() });
    Admitted { objects: in_force.clone(), errors: errors.into_iter().collect(), clean }
}

/// Looks once and moves what is at fault. A fault with an object that has just moved is looked at again in the next
/// round: it may be gone. Where nothing moved any more, says whether there was no fault.
fn round(draft: &mut Draft<'_>, errors: &mut BTreeSet<ObjectError>) -> Option<bool> {
    let faults = faults::faults(draft);
    let mut moved = BTreeSet::new();
    for fault in &faults {
        let again = fault.with.as_ref().is_some_and(|other| moved.contains(&Subject::Object(other.clone())));
        let Some(subject) = fault.gives_way.as_ref().filter(|_| !again) else { continue };
        if moved.contains(subject) || draft.move_back(subject) {
            moved.insert(subject.clone());
            errors.insert(fault.error.clone());
        }
    }
    if !moved.is_empty() {
        return None;
    }
    let clean = faults.is_empty();
    errors.extend(faults.into_iter().map(|f| f.error));
    Some(clean)
}
