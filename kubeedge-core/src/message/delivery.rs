use crate::id::NodeName;

/// Identifies one delivery of a message by the link to the part that has to make it durable.
///
/// Later deliveries of one session have larger numbers. The part echoes the number when the message is
/// safe, and the link tells the peer: a message is never acknowledged because it was merely received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Delivery {
    /// The session in which it was delivered; an echo from an earlier session means nothing to a later one.
    pub session: u64,
    /// Counts up within the session.
    pub number: u64,
}

/// A message from the link, to be echoed as [`Acked`] once it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered<T> {
    /// What to echo.
    pub delivery: Delivery,
    /// The message.
    pub message: T,
}

/// Says that the delivery of the state `key`, and every earlier one of the same key, is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acked<K> {
    /// The state's key.
    pub key: K,
    /// The newest delivery that is durable.
    pub delivery: Delivery,
}

/// A message that came from a node, whose identity its certificate has proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromNode<T> {
    /// The node.
    pub node: NodeName,
    /// The message.
    pub message: T,
}

/// A message for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToNode<T> {
    /// The node.
    pub node: NodeName,
    /// The message.
    pub message: T,
}
