//! Who may become which node. Pure.

use std::time::Duration;

use super::Refused;

/// What tells the nodes at the edge from the machines of the cluster.
pub(super) const EDGE_LABEL: &str = "node-role.kubernetes.io/edge";

/// The annotation of a Node that shuts its node out.
pub(super) const SHUT_OUT: &str = "node.kubeedge.io/shut-out";

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
    /// Whether it is at the edge, by its label. Another one is a machine of the cluster.
    pub(super) edge: bool,
    /// Whether its annotation shuts it out.
    pub(super) shut_out: bool,
}

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) renew_expired_within: Duration,
    pub(super) rejoin: bool,
}

/// Judges a claim to be the node that is `known`, or a node that is not known.
pub(super) fn judge(claim: Claim, known: Option<Known>, now: Duration, terms: Terms) -> Result<(), Refused> {
    match (claim, known) {
        (_, Some(node)) if node.shut_out => Err(Refused::ShutOut),
        (Claim::Certificate, _) | (Claim::Token { .. }, None) => Ok(()),
        (Claim::Expired { .. }, None) => Err(Refused::NodeDeleted),
        (Claim::Token { .. } | Claim::Expired { .. }, Some(node)) if !node.edge => {
            Err(Refused::NodeOfCluster)
        }
        (Claim::Token { .. }, Some(node)) if node.ready => Err(Refused::NodeConnected),
        (Claim::Token { issued }, Some(node)) if issued <= node.created => Err(Refused::TokenUsed),
        (Claim::Token { .. }, Some(_)) if !terms.rejoin => Err(Refused::NodeExists),
        (Claim::Token { .. }, Some(_)) => Ok(()),
        (Claim::Expired { ended }, Some(_)) if now.saturating_sub(ended) > terms.renew_expired_within => {
            Err(Refused::ExpiredTooLong)
        }
        (Claim::Expired { .. }, Some(_)) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    const TERMS: Terms = Terms { renew_expired_within: Duration::from_secs(10 * 3600), rejoin: true };

    fn judged(claim: Claim, known: Option<Known>) -> Result<(), Refused> {
        judge(claim, known, 100 * HOUR, TERMS)
    }

    /// A node at the edge that was created at this hour and is not connected.
    fn away(hour: u32) -> Known {
        Known { created: hour * HOUR, ready: false, edge: true, shut_out: false }
    }

    #[test]
    fn a_token_is_good_for_a_name_until_a_node_of_that_name_has_joined() {
        let token = Claim::Token { issued: 90 * HOUR };
        assert_eq!(judged(token, None), Ok(()));
        assert_eq!(judged(token, Some(away(95))), Err(Refused::TokenUsed));
        assert_eq!(judged(token, Some(away(10))), Ok(()), "a node that lost its disk joins again");
        let connected = Known { ready: true, ..away(10) };
        assert_eq!(judged(token, Some(connected)), Err(Refused::NodeConnected));
    }

    #[test]
    fn a_node_that_is_shut_out_gets_no_certificate_by_whatever_it_shows() {
        let shut_out = Some(Known { shut_out: true, ..away(10) });
        for claim in
            [Claim::Token { issued: 90 * HOUR }, Claim::Certificate, Claim::Expired { ended: 95 * HOUR }]
        {
            assert_eq!(judged(claim, shut_out), Err(Refused::ShutOut));
        }
    }

    #[test]
    fn nobody_becomes_a_machine_of_the_cluster_also_while_it_reboots() {
        for ready in [true, false] {
            let worker = Some(Known { ready, edge: false, ..away(10) });
            for claim in [Claim::Token { issued: 90 * HOUR }, Claim::Expired { ended: 95 * HOUR }] {
                assert_eq!(judged(claim, worker), Err(Refused::NodeOfCluster));
            }
        }
    }

    #[test]
    fn an_operator_may_want_a_node_to_be_deleted_before_it_joins_again() {
        let strict = Terms { rejoin: false, ..TERMS };
        let judged = |claim, known| judge(claim, known, 100 * HOUR, strict);
        let token = Claim::Token { issued: 90 * HOUR };
        assert_eq!(judged(token, Some(away(10))), Err(Refused::NodeExists));
        assert_eq!(judged(token, None), Ok(()));
        assert_eq!(judged(Claim::Expired { ended: 95 * HOUR }, Some(away(10))), Ok(()), "its key is enough");
    }

    #[test]
    fn a_certificate_that_has_ended_is_renewed_for_a_time_and_for_nodes_that_are_known() {
        let known = Some(away(10));
        assert_eq!(judged(Claim::Expired { ended: 95 * HOUR }, known), Ok(()));
        assert_eq!(judged(Claim::Expired { ended: 80 * HOUR }, known), Err(Refused::ExpiredTooLong));
        assert_eq!(judged(Claim::Expired { ended: 95 * HOUR }, None), Err(Refused::NodeDeleted));
        assert_eq!(judged(Claim::Certificate, None), Ok(()));
    }
}
