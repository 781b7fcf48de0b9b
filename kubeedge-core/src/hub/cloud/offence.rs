use std::fmt;

/// How an edge broke the rules of the link, so that its session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Offence {
    /// Its hello has another name than its certificate.
    OtherName,
    /// A frame is longer than its lane allows.
    TooLong,
    /// It sent what is no frame.
    Garbled,
    /// It sent a frame that has no place there.
    Unexpected,
    /// It holds or sends more than one node may.
    TooMuch,
    /// The certificate that it showed has ended meanwhile.
    Expired,
    /// It comes though it is shut out.
    ShutOut,
}

impl Offence {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::OtherName,
        Self::TooLong,
        Self::Garbled,
        Self::Unexpected,
        Self::TooMuch,
        Self::Expired,
        Self::ShutOut,
    ];

    /// The reason in one word, for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OtherName => "other-name",
            Self::TooLong => "too-long",
            Self::Garbled => "garbled",
            Self::Unexpected => "unexpected",
            Self::TooMuch => "too-much",
            Self::Expired => "expired",
            Self::ShutOut => "shut-out",
        }
    }
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
