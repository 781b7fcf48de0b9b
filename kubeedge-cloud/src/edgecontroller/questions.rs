//! The questions of nodes that only the API can answer: whose is asked next.

use std::{sync::Arc, time::Instant};

use kubeedge_core::{
    id::NodeName,
    message::{Answer, ObjectRef, TokenRequest},
    pipe::Replier,
};

use super::{Config, Counts, certificates, requests, state::Plan, turns::Turns};
use crate::{
    authorization::{Denials, Serving},
    controller::{Kind, api::Api},
};

/// The questions that wait for the API.
#[derive(Debug)]
pub(super) struct Questions {
    turns: Turns<Question>,
    waiting_max: usize,
    counts: Arc<Counts>,
}

/// A question for the API, and where its answer goes.
#[derive(Debug)]
pub(super) struct Question {
    about: About,
    replier: Replier<Answer>,
}

#[derive(Debug)]
enum About {
    Object(Kind, ObjectRef),
    Token(TokenRequest),
    Certificate(NodeName, Box<Serving>),
}

impl Questions {
    pub(super) fn new(config: &Config, counts: Arc<Counts>) -> Self {
        let turns = Turns::new(config.questions_at_once.get(), config.questions_per_node.get());
        Self { turns, waiting_max: config.questions_waiting_max.get(), counts }
    }

    /// A node has asked. What is known here is answered at once.
    pub(super) fn handle(&mut self, node: NodeName, plan: Plan, replier: Replier<Answer>) {
        let about = match plan {
            Plan::Answer(answer) => return replier.answer(answer),
            Plan::Ask(kind, reference) => About::Object(kind, reference),
            Plan::Issue(request) => About::Token(request),
            Plan::Certify(serving) => About::Certificate(node.clone(), serving),
        };
        if self.turns.waiting_of(&node) >= self.waiting_max {
            self.turns.retain(&node, |question| !question.replier.is_withdrawn());
        }
        if self.turns.waiting_of(&node) >= self.waiting_max {
            return replier.answer(Answer::Refused("too many questions of the node wait".to_owned()));
        }
        self.turns.put(node, Question { about, replier });
        self.counts.set_questions(self.turns.held_back());
    }

    /// The question to ask next; [`Questions::handle_answered`] follows.
    pub(super) fn poll(&mut self, now: Instant) -> Option<(NodeName, Question)> {
        loop {
            let (node, question) = self.turns.poll(now)?;
            if !question.replier.is_withdrawn() {
                return Some((node, question));
            }
            // Nobody waits for the answer any more.
            self.turns.done(&node);
        }
    }

    /// One of the node's has been answered.
    pub(super) fn handle_answered(&mut self, node: &NodeName) {
        self.turns.done(node);
    }
}

impl Question {
    /// Asks the API, and hands on what it says.
    pub(super) async fn answer(self, api: Api, denials: Denials) {
        let answer = match self.about {
            About::Object(kind, reference) => requests::answer(&api, kind, &reference).await,
            About::Token(request) => requests::issue(&api, &request).await,
            About::Certificate(node, serving) => certificates::certify(&api, &node, &serving, &denials).await,
        };
        self.replier.answer(answer);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kubeedge_core::pipe;

    use super::*;
    use crate::controller::testing::node;

    #[tokio::test]
    async fn a_node_that_asks_without_pause_holds_up_itself_and_what_is_known_is_answered_at_once() {
        let (caller, mut callee) = pipe::calls("queries", 1024);
        let mut questions = Questions::new(&Config::default(), Arc::default());
        let object = || Plan::Ask(super::super::state::NODES, ObjectRef::node("n"));
        let busy = (0..300).map(|_| ("busy", object()));
        let others = [("busy", Plan::Answer(Answer::NotFound)), ("quiet", object())];
        let mut calls = Vec::new();
        for (from, plan) in busy.chain(others) {
            let caller = caller.clone();
            calls.push(tokio::spawn(async move { caller.call((), Duration::from_secs(60)).await }));
            let ((), replier) = callee.recv().await.unwrap().split();
            questions.handle(node(from), plan, replier);
        }
        let _quiet = calls.pop();
        let known = calls.pop().unwrap().await.unwrap().unwrap();
        assert_eq!(known, Answer::NotFound);
        let mut under_way = Vec::new();
        while let Some(next) = questions.poll(Instant::now()) {
            under_way.push(next);
        }
        let of = |name: &str| under_way.iter().filter(|(of, _)| *of == node(name)).count();
        assert_eq!((of("busy"), of("quiet")), (4, 1));
        assert!(questions.counts.questions_held_back() > 250);
        // Those for which there was no room are told so.
        let refused = calls.pop().unwrap().await.unwrap().unwrap();
        assert!(matches!(refused, Answer::Refused(_)), "{refused:?}");
        // Whoever does not wait any more is not asked for.
        for call in calls {
            call.abort();
            let _ = call.await;
        }
        drop(under_way);
        (0..4).for_each(|_| questions.handle_answered(&node("busy")));
        assert!(questions.poll(Instant::now()).is_none());
    }
}
