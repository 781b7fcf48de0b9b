use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kubeedge_core::id::NodeName;

/// Why a node was refused something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Denial {
    /// No pod and no device of the node refers to the object.
    NotReferenced,
    /// The Node is another.
    OtherNode,
    /// The pod is on another node.
    OtherPod,
    /// The device is on another node.
    OtherDevice,
    /// There is no such pod or device, or it has another UID: the node may only be late.
    NoSuchObject,
    /// The pod does not mount such a token.
    TokenNotMounted,
    /// A node may not give itself this label.
    Label,
    /// A node may not give itself this annotation.
    Annotation,
    /// A pod that a node asks for has to stand for a file of the node, and to be named after both.
    NotAMirror,
    /// A pod that stands for a file of the node is on another.
    MirrorElsewhere,
    /// A pod that stands for a file cannot have what the API keeps: Secrets, ConfigMaps, claims, accounts, tokens.
    MirrorWantsMore,
    /// The event is not about the node or one of its pods.
    OtherEvent,
    /// The rules that a message would be sent by begin on other nodes.
    OtherRule,
    /// What was sent cannot be read.
    Unreadable,
    /// The node is shut out by its Node's annotation.
    ShutOut,
    /// The certificate would be another's.
    CertificateSubject,
    /// Whoever asks for a certificate has not proven to have its key.
    CertificateProof,
    /// The certificate would be good for more than a server's.
    CertificateUse,
    /// The certificate would have names that are not the node's, or none.
    CertificateNames,
}

impl Denial {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::NotReferenced,
        Self::OtherNode,
        Self::OtherPod,
        Self::OtherDevice,
        Self::NoSuchObject,
        Self::TokenNotMounted,
        Self::Label,
        Self::Annotation,
        Self::NotAMirror,
        Self::MirrorElsewhere,
        Self::MirrorWantsMore,
        Self::OtherEvent,
        Self::OtherRule,
        Self::Unreadable,
        Self::ShutOut,
        Self::CertificateSubject,
        Self::CertificateProof,
        Self::CertificateUse,
        Self::CertificateNames,
    ];

    /// The reason in one word, for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotReferenced => "not-referenced",
            Self::OtherNode => "other-node",
            Self::OtherPod => "other-pod",
            Self::OtherDevice => "other-device",
            Self::NoSuchObject => "no-such-object",
            Self::TokenNotMounted => "token-not-mounted",
            Self::Label => "label",
            Self::Annotation => "annotation",
            Self::NotAMirror => "not-a-mirror",
            Self::MirrorElsewhere => "mirror-elsewhere",
            Self::MirrorWantsMore => "mirror-wants-more",
            Self::OtherEvent => "other-event",
            Self::OtherRule => "other-rule",
            Self::Unreadable => "unreadable",
            Self::ShutOut => "shut-out",
            Self::CertificateSubject => "certificate-subject",
            Self::CertificateProof => "certificate-proof",
            Self::CertificateUse => "certificate-use",
            Self::CertificateNames => "certificate-names",
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReferenced => "no pod and no device of the node refers to it",
            Self::OtherNode => "it is another node",
            Self::OtherPod => "the pod is on another node",
            Self::OtherDevice => "the device is on another node",
            Self::NoSuchObject => "there is none of this name and UID",
            Self::TokenNotMounted => "the pod mounts no such token",
            Self::Label => "a node may not give itself this label",
            Self::Annotation => "a node may not give itself this annotation",
            Self::NotAMirror => "it does not stand for a file of the node: its name must end with the node's, and it needs the annotation kubernetes.io/config.mirror",
            Self::MirrorElsewhere => "it is not on the node that reports it",
            Self::MirrorWantsMore => {
                "a pod of a file cannot refer to Secrets, ConfigMaps, claims, accounts or tokens"
            }
            Self::OtherEvent => "it is not about the node or one of its pods",
            Self::OtherRule => "the rules for it begin on other nodes",
            Self::Unreadable => "it cannot be read",
            Self::ShutOut => "the node is shut out by its Node's annotation node.kubeedge.io/shut-out",
            Self::CertificateSubject => "the subject of a node's certificate is CN system:node:<name>, O system:nodes",
            Self::CertificateProof => "the request is not signed with the key that it is for",
            Self::CertificateUse => "the certificate would be good for more than a server on the node",
            Self::CertificateNames => "a node's certificate has its name and IP addresses of its Node, one at least, and no others",
        })?;
        write!(f, " ({})", self.reason())
    }
}

impl std::error::Error for Denial {}

/// How often each [`Denial`] was spoken. All clones count together; the memory is the same however many nodes try.
#[derive(Clone, Default)]
pub struct Denials(Arc<[AtomicU64; Denial::ALL.len()]>);

impl Denials {
    /// What was refused so far, for metrics.
    pub fn counts(&self) -> impl Iterator<Item = (Denial, u64)> + '_ {
        Denial::ALL.into_iter().map(|denial| (denial, self.of(denial)))
    }

    /// How often it was this.
    pub fn of(&self, denial: Denial) -> u64 {
        self.0[denial as usize].load(Ordering::Relaxed)
    }

    /// Counts it, and says so: the first, the second, the fourth and so on, so that a node which asks without pause does
    /// not fill the disk with it.
    pub(crate) fn note(&self, node: &NodeName, what: impl fmt::Display, denial: Denial) {
        let count = self.0[denial as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let reason = denial.reason();
        if denial == Denial::NoSuchObject || !count.is_power_of_two() {
            tracing::debug!(%node, %what, reason, count, "a node was refused: {denial}");
        } else {
            tracing::warn!(%node, %what, reason, count, "a node was refused: {denial}");
        }
    }
}

impl fmt::Debug for Denials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.counts().map(|(denial, count)| (denial.reason(), count))).finish()
    }
}
