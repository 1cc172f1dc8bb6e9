//! What the swarm hears over its protocols: gossip, questions, answers, identify, pings, the distributed table.
//!
//! Invariant: nothing here waits, and nothing a peer says is passed on or kept before it was checked.

use std::io;

use cairn_protocol::{
    advert::{AdvertError, SignedAdvert},
    id::{NodeId, RevisionId},
    peer_pb::{self, Answer, Hello, Question, answer::Say, question::Ask},
    refusal::Reason,
};
use libp2p::{
    Multiaddr, PeerId,
    gossipsub::{self, MessageAcceptance},
    identify,
    kad::{self, GetProvidersOk, QueryResult, store::RecordStore},
    mdns, ping,
    request_response::{self, InboundRequestId, Message, OutboundFailure, ResponseChannel},
    swarm::SwarmEvent,
};

use super::{
    AskError, PeerEvent, Severity,
    behaviour::BehaviourEvent,
    bounds,
    codec::{Received, Unread},
    identity,
    inbox::{GossipedRecord, InboundQuestion, Reply, refused},
    peers::Heard,
    rate::Rate,
    swarm::{Asked, Owner, Rates},
};

impl Owner {
    /// Everything the swarm reports passes here.
    pub(super) fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_talk(event),
            other => self.on_link(other),
        }
    }

    fn on_talk(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Questions(event) => self.on_question_event(event),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.on_identified(peer_id, info);
            }
            BehaviourEvent::Ping(ping::Event { peer, result: Ok(rtt), .. }) => {
                if let Some(node) = identity::node_id(&peer) {
                    let now_ms = self.clock.now_ms();
                    self.table().pinged(now_ms, node, rtt);
                }
            }
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed { id, result, step, .. }) => {
                self.on_found(id, result, step.last);
            }
            BehaviourEvent::Kad(kad::Event::InboundRequest { request }) => self.on_table_request(request),
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.on_discovered(found),
            _ => {}
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                self.on_gossiped(propagation_source, message_id, message);
            }
            gossipsub::Event::Subscribed { peer_id, topic } if topic == self.names.records.hash() => {
                self.on_listener(peer_id);
            }
            _ => {}
        }
    }

    /// A peer began to listen to records: it may be caught up with, and what nobody heard yet is told again.
    fn on_listener(&mut self, peer: PeerId) {
        for bytes in std::mem::take(&mut self.unsent) {
            self.publish_record(bytes);
        }
        self.own.tell_again();
        let Some(node) = identity::node_id(&peer) else { return };
        if self.arrivals.try_send(node).is_err() {
            tracing::debug!(node = %node.short(), "too many arrivals at once; this one is caught up with later");
        }
    }

    fn on_gossiped(&mut self, source: PeerId, message_id: gossipsub::MessageId, message: gossipsub::Message) {
        let now_ms = self.clock.now_ms();
        let Some(from) = identity::node_id(&source) else { return };
        self.table().seen(now_ms, from);
        if !self.rates(source).gossip.take(now_ms) {
            self.settle(&message_id, &source, MessageAcceptance::Ignore);
            self.penalise(from, Severity::Nuisance, "it gossips too much");
        } else if message.topic == self.names.adverts.hash() {
            let acceptance = self.weigh_advert(from, &message.data);
            self.settle(&message_id, &source, acceptance);
        } else if let Some(commands) = self.commands.upgrade() {
            let record = GossipedRecord { from, bytes: message.data, message: message_id, source, commands };
            if let Err(error) = self.records.try_send(record) {
                let record = error.into_inner();
                tracing::debug!("the catalogue is busy; a gossiped record is dropped");
                self.settle(&record.message, &source, MessageAcceptance::Ignore);
            }
        }
    }

    fn settle(&mut self, message: &gossipsub::MessageId, source: &PeerId, acceptance: MessageAcceptance) {
        self.swarm.behaviour_mut().gossip.report_message_validation_result(message, source, acceptance);
    }

    /// Checks a gossiped advert and says whether it goes on.
    fn weigh_advert(&mut self, from: NodeId, bytes: &[u8]) -> MessageAcceptance {
        let advert = SignedAdvert::from_bytes(bytes).and_then(|signed| signed.verify());
        let advert = match advert {
            Ok(advert) if advert.realm == self.realm() => advert,
            Ok(_) => {
                self.penalise(from, Severity::Fault, "it passed on an advert of another realm");
                return MessageAcceptance::Reject;
            }
            Err(AdvertError::UnknownVersion(_)) => return MessageAcceptance::Ignore,
            Err(error) => {
                self.penalise(from, Severity::Breach, &format!("it passed on a false advert: {error}"));
                return MessageAcceptance::Reject;
            }
        };
        let (now_ms, node) = (self.clock.now_ms(), advert.node);
        let (heard, is_small_mesh) = {
            let mut table = self.table();
            let is_stranger = !table.has_advert(&advert.node);
            (table.heard(now_ms, advert), is_stranger && table.count() < bounds::PEERS_WANTED)
        };
        if is_small_mesh && heard == Heard::Newer {
            // A newcomer knows nobody yet; in a large mesh it can wait for everyone's next advert.
            self.own.tell_again();
        }
        if heard == Heard::Newer {
            self.redial.lives(now_ms, node);
        }
        match heard {
            Heard::Newer => MessageAcceptance::Accept,
            Heard::Older | Heard::TooMany | Heard::Unwanted => MessageAcceptance::Ignore,
        }
    }

    fn on_question_event(&mut self, event: request_response::Event<Received, Answer>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                Message::Request { request_id, request, channel } => {
                    self.on_question(peer, request_id, request, channel);
                }
                Message::Response { request_id, response } => {
                    if let Some(asked) = self.ask_is_over(&request_id) {
                        self.on_answer(peer, asked, response);
                    }
                }
            },
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                let error = ask_error(peer, error);
                if let AskError::Garbled { node, why } = &error {
                    self.penalise(*node, Severity::Fault, &format!("its answer can't be read: {why}"));
                }
                if let Some(Asked::By(_, reply)) = self.ask_is_over(&request_id) {
                    // The asker may be gone: then there is nobody to tell.
                    let _ = reply.send(Err(error));
                }
            }
            request_response::Event::InboundFailure { request_id, .. }
            | request_response::Event::ResponseSent { request_id, .. } => self.question_is_over(request_id),
        }
    }

    fn on_question(
        &mut self,
        peer: PeerId,
        id: InboundRequestId,
        received: Received,
        channel: ResponseChannel<Answer>,
    ) {
        let now_ms = self.clock.now_ms();
        let Some(from) = identity::node_id(&peer) else { return };
        self.table().seen(now_ms, from);
        let is_allowed = self.rates(peer).questions.take(now_ms);
        let waiting = self.questions_of.entry(peer).or_default();
        let is_crowded = *waiting >= bounds::QUESTIONS_PER_PEER_MAX;
        *waiting += 1;
        self.answering.insert(id, peer);
        if !is_allowed {
            self.penalise(from, Severity::Nuisance, "it asks too much");
        }
        if !is_allowed || is_crowded {
            return self.say(channel, refused(Reason::Busy, "you have too many questions under way here"));
        }
        let question = match received {
            Ok(question) => question,
            // The channel is dropped: that closes the stream.
            Err(Unread::Abandoned) => return,
            Err(Unread::Senseless(why)) => {
                return self.penalise(from, Severity::Fault, &format!("its question can't be read: {why}"));
            }
        };
        match question.ask {
            Some(Ask::Hello(hello)) => {
                let answer = self.hello(from, hello);
                self.say(channel, answer);
            }
            Some(_) => self.hand_over(from, question, channel),
            None => self.say(channel, refused(Reason::Unsupported, "this node doesn't know that question")),
        }
    }

    /// The catalogue's worker answers; if it has too much to do, the peer learns that at once.
    fn hand_over(&mut self, from: NodeId, question: Question, channel: ResponseChannel<Answer>) {
        let Some(commands) = self.commands.upgrade() else { return };
        let question = InboundQuestion { from, question, reply: Reply { channel, commands } };
        if let Err(error) = self.questions.try_send(question) {
            let channel = error.into_inner().reply.channel;
            self.say(channel, refused(Reason::Busy, "this node has too many questions to answer"));
        }
    }

    fn say(&mut self, channel: ResponseChannel<Answer>, say: Say) {
        self.answer(channel, Answer { say: Some(say) });
    }

    fn question_is_over(&mut self, id: InboundRequestId) {
        let Some(peer) = self.answering.remove(&id) else { return };
        if let Some(waiting) = self.questions_of.get_mut(&peer) {
            *waiting -= 1;
            if *waiting == 0 {
                self.questions_of.remove(&peer);
            }
        }
    }

    fn on_answer(&mut self, peer: PeerId, asked: Asked, answer: Answer) {
        let Some(node) = identity::node_id(&peer) else { return };
        let now_ms = self.clock.now_ms();
        self.table().seen(now_ms, node);
        match (asked, answer.say) {
            (Asked::Hello, Some(Say::Hello(hello))) => self.greeted(node, hello),
            (Asked::Hello, _) => tracing::debug!(node = %node.short(), "a peer didn't answer our hello"),
            (Asked::By(_, reply), say) => {
                let result = match say {
                    Some(Say::Refused(peer_pb::Refused { reason, why })) => {
                        Err(AskError::Refused { node, reason, why })
                    }
                    Some(say) => Ok(Answer { say: Some(say) }),
                    None => Err(AskError::Garbled { node, why: "an answer of an unknown kind".to_owned() }),
                };
                // The asker may be gone: then there is nobody to tell.
                let _ = reply.send(result);
            }
        }
    }

    /// Both sides tell each other their adverts.
    fn hello(&mut self, from: NodeId, hello: Hello) -> Say {
        self.greeted(from, hello);
        let (statement, talk) = self.said_of_self();
        match self.own.current(&statement, talk) {
            Some(signed) => Say::Hello(Hello { advert: Some(signed.to_pb()) }),
            None => refused(Reason::Busy, "this node is just starting"),
        }
    }

    /// Begins the exchange.
    pub(super) fn say_hello(&mut self, peer: PeerId) {
        let (statement, talk) = self.said_of_self();
        let Some(signed) = self.own.current(&statement, talk) else { return };
        let question = Question { ask: Some(Ask::Hello(Hello { advert: Some(signed.to_pb()) })) };
        let id = self.swarm.behaviour_mut().questions.send_request(&peer, Ok(question));
        self.asks.insert(id, Asked::Hello);
    }

    /// Checks the advert that a peer told of itself over its own connection.
    fn greeted(&mut self, from: NodeId, hello: Hello) {
        let Some(advert) = hello.advert else { return };
        let advert = match SignedAdvert::from_pb(advert).and_then(|signed| signed.verify()) {
            Ok(advert) => advert,
            Err(AdvertError::UnknownVersion(_)) => return self.disconnect(from, "its advert is of another version"),
            Err(error) => return self.penalise(from, Severity::Breach, &format!("its advert is false: {error}")),
        };
        if advert.node != from {
            return self.penalise(from, Severity::Attack, "its advert is another node's");
        }
        if advert.realm != self.realm() {
            return self.disconnect(from, "it is of another realm");
        }
        let now_ms = self.clock.now_ms();
        let is_news = {
            let mut table = self.table();
            table.heard(now_ms, advert);
            table.prove(from)
        };
        if is_news {
            self.redial.met(now_ms, from);
            if let Some(peer) = identity::peer_id(from) {
                self.swarm.behaviour_mut().strangers.prove(peer);
            }
            // Nobody listening is fine.
            let _ = self.events.send(PeerEvent::Connected(from));
        }
    }

    fn on_identified(&mut self, peer: PeerId, info: identify::Info) {
        let Some(node) = identity::node_id(&peer) else { return };
        if info.protocol_version != self.names.family() {
            return self.disconnect(node, "it speaks another protocol or is of another realm");
        }
        let addresses: Vec<Multiaddr> = info.listen_addrs.into_iter().take(bounds::ADDRESSES_PER_PEER_MAX).collect();
        self.make_room_for_addresses(&peer);
        for address in &addresses {
            self.swarm.behaviour_mut().kad.add_address(&peer, address.clone());
        }
        self.table().add_addresses(node, addresses);
    }

    /// A peer may identify itself with other addresses again and again, and the table forgets none: when it has more than one
    /// telling's worth of them, they give way to the new ones.
    fn make_room_for_addresses(&mut self, peer: &PeerId) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        let count = kad.kbucket(*peer).map_or(0, |bucket| {
            let own = bucket.iter().filter(|entry| entry.node.key.preimage() == peer);
            own.map(|entry| entry.node.value.len()).sum()
        });
        if count > bounds::ADDRESSES_PER_PEER_MAX {
            kad.remove_peer(peer);
        }
    }

    fn on_table_request(&mut self, request: kad::InboundRequest) {
        match request {
            kad::InboundRequest::AddProvider { record: Some(record) } => self.on_announced(record),
            kad::InboundRequest::PutRecord { source, .. } => {
                if let Some(node) = identity::node_id(&source) {
                    self.penalise(node, Severity::Fault, "it puts a value into the table, which holds none");
                }
            }
            _ => {}
        }
    }

    /// A peer says that it keeps a revision; libp2p has seen to it that it speaks of itself.
    fn on_announced(&mut self, mut record: kad::ProviderRecord) {
        let (Some(node), Ok(revision)) =
            (identity::node_id(&record.provider), RevisionId::try_from(record.key.as_ref()))
        else {
            return;
        };
        if let Err(why) = self.provided.announced(self.clock.now_ms(), node, revision) {
            return tracing::debug!(node = %node.short(), ?why, "an announcement is not remembered");
        }
        let mut bytes = 0;
        record.addresses.retain(|address| {
            bytes += address.len();
            bytes <= bounds::PROVIDER_ADDRESS_BYTES_MAX
        });
        record.addresses.shrink_to_fit();
        if let Err(error) = self.swarm.behaviour_mut().kad.store_mut().add_provider(record) {
            tracing::debug!(?error, "an announcement finds no room");
            self.provided.forget(node, revision);
        }
    }

    fn on_found(&mut self, query: kad::QueryId, result: QueryResult, is_last: bool) {
        let Some(reply) = self.searches.get(&query) else { return };
        if let QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) = result {
            let nodes: Vec<NodeId> = providers.iter().filter_map(identity::node_id).collect();
            if reply.try_send(nodes).is_err() {
                tracing::debug!("a search for providers has found more than its asker takes");
            }
        }
        if is_last {
            self.searches.remove(&query);
        }
    }

    fn on_discovered(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let now_ms = self.clock.now_ms();
        for (peer, address) in found.into_iter().take(bounds::PEERS_WANTED) {
            if let Some(node) = identity::node_id(&peer) {
                self.redial.add_peer(now_ms, node, vec![address]);
            }
        }
    }

    /// What that peer may still send; made anew for every connected peer.
    fn rates(&mut self, peer: PeerId) -> &mut Rates {
        let now_ms = self.clock.now_ms();
        self.rates.entry(peer).or_insert_with(|| Rates {
            questions: Rate::new(bounds::QUESTIONS_BURST, bounds::QUESTIONS_PER_S, now_ms),
            gossip: Rate::new(bounds::GOSSIP_BURST, bounds::GOSSIP_PER_S, now_ms),
        })
    }
}

fn ask_error(peer: PeerId, error: OutboundFailure) -> AskError {
    let Some(node) = identity::node_id(&peer) else { return AskError::Busy };
    match error {
        OutboundFailure::Timeout => AskError::Deadline { node, deadline: bounds::QUESTION_DEADLINE },
        OutboundFailure::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            AskError::Garbled { node, why: error.to_string() }
        }
        other => AskError::Unreachable { node, why: other.to_string() },
    }
}
