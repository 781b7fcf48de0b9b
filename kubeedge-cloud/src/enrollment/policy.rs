//! Who may become which node. Pure.

use std::time::Duration;

use super::Refused;

/// How whoever asks has proven that they may, with times since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// By a token that was made at this time.
    Token { issued: Duration },
    /// By the certificate of the node, which is valid.
    Certificate,
    /// By the certificate of the node, which has ended at this time.
    Expired { ended: Duration },
}

impl Claim {
    pub(super) fn is_renewal(self) -> bool {
        !matches!(self, Self::Token { .. })
    }
}

/// The Node as the API has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// Since when, in time since 1970.
    pub(super) created: Duration,
    /// Whether it is connected, as far as the API knows.
    pub(super) ready: bool,
}

/// Judges a claim to be the node that is `known`, or a node that is not known.
pub(super) fn judge(
    claim: Claim,
    known: Option<Known>,
    now: Duration,
    renew_expired_within: Duration,
) -> Result<(), Refused> {
    match (claim, known) {
        (Claim::Certificate, _) | (Claim::Token { .. }, None) => Ok(()),
        (Claim::Token { .. }, Some(node)) if node.ready => Err(Refused::NodeConnected),
        (Claim::Token { issued }, Some(node)) if issued <= node.created => Err(Refused::TokenUsed),
        (Claim::Token { .. }, Some(_)) => Ok(()),
        (Claim::Expired { .. }, None) => Err(Refused::NodeDeleted),
        (Claim::Expired { ended }, Some(_)) if now.saturating_sub(ended) > renew_expired_within => {
            Err(Refused::ExpiredTooLong)
        }
        (Claim::Expired { .. }, Some(_)) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn judged(claim: Claim, known: Option<Known>) -> Result<(), Refused> {
        judge(claim, known, 100 * HOUR, 10 * HOUR)
    }

    #[test]
    fn a_token_is_good_for_a_name_until_a_node_of_that_name_has_joined() {
        let token = Claim::Token { issued: 90 * HOUR };
        assert_eq!(judged(token, None), Ok(()));
        let joined = Known { created: 95 * HOUR, ready: false };
        assert_eq!(judged(token, Some(joined)), Err(Refused::TokenUsed));
        let long_ago = Known { created: 10 * HOUR, ready: false };
        assert_eq!(judged(token, Some(long_ago)), Ok(()), "a node that lost its disk joins again");
        let connected = Known { created: 10 * HOUR, ready: true };
        assert_eq!(judged(token, Some(connected)), Err(Refused::NodeConnected));
    }

    #[test]
    fn a_certificate_that_has_ended_is_renewed_for_a_time_and_for_nodes_that_are_known() {
        let known = Some(Known { created: 10 * HOUR, ready: false });
        assert_eq!(judged(Claim::Expired { ended: 95 * HOUR }, known), Ok(()));
        assert_eq!(judged(Claim::Expired { ended: 80 * HOUR }, known), Err(Refused::ExpiredTooLong));
        assert_eq!(judged(Claim::Expired { ended: 95 * HOUR }, None), Err(Refused::NodeDeleted));
        assert_eq!(judged(Claim::Certificate, None), Ok(()));
    }
}
