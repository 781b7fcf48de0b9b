//! What nodes have reported, while it waits for the API.

use std::mem;

use bytes::Bytes;
use kubeedge_core::message::{Delivered, Delivery, PodReport, PodState, Report};

use crate::controller::Packed;

/// A report with its text compressed: after a restart of the cloud all nodes report all their pods, faster than an API
/// takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::edgecontroller) struct Reported {
    pub(super) delivery: Delivery,
    /// The report without its text.
    pub(super) head: Report,
    pub(super) text: Option<Packed>,
}

impl Reported {
    pub(in crate::edgecontroller) fn new(delivered: Delivered<Report>) -> Self {
        let Delivered { delivery, message: mut head } = delivered;
        let text = text_of(&mut head).map(|text| Packed::new(&mem::take(text)));
        Self { delivery, head, text }
    }

    /// The whole report.
    pub(super) fn report(&self) -> Report {
        let mut report = self.head.clone();
        if let (Some(place), Some(text)) = (text_of(&mut report), &self.text) {
            *place = text.text();
        }
        report
    }
}

fn text_of(report: &mut Report) -> Option<&mut Bytes> {
    match report {
        Report::Node(report) => Some(&mut report.json),
        Report::Pod(PodReport { state: PodState::Status(status), .. }) => Some(status),
        Report::Mirror(report) => report.pod.as_mut(),
        Report::Pod(_) | Report::Device(_) => None,
    }
}
