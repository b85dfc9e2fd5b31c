//! What is heard: questions are answered, claims of others reported, our own frames ignored.

use std::net::IpAddr;
use std::time::Duration;

use super::{
    AnnounceState, Announcer, AnnouncerEvent, CONFLICT_RETRY, CONTEST_INTERVAL, HEARD_INTERVAL,
    REPAIR_DELAY, Timer,
};
use crate::l2::ndp::Message;
use crate::l2::{arp, ethernet, ndp};
use crate::model::mac::Mac;

/// What a frame means to one of our VIPs.
enum Heard {
    /// `mac` says that it has the VIP.
    Claim { vip: IpAddr, mac: Mac },
    /// `mac` asks whether the VIP is free; `answer` says that it is not.
    Probe { vip: IpAddr, mac: Mac, answer: Vec<u8> },
    /// `asker`, at `mac`, wants to talk to the VIP.
    Question { vip: IpAddr, asker: IpAddr, mac: Mac, answer: Vec<u8> },
    /// One of our own frames.
    Own,
    /// Nothing to us.
    Nothing,
    /// Not what it claims to be.
    Malformed,
}

impl Announcer {
    /// Takes a frame from the Ethernet header on, as it came in on `ifindex`. Answers are in
    /// [`Announcer::transmissions`] at once.
    pub fn receive(&mut self, ifindex: u32, frame: &[u8], now: Duration) {
        self.counters.received += 1;
        // Gone or down by what we know: nothing is said there.
        let heard = match self.links.get(&ifindex) {
            Some(link) => self.interpret(link.mac, frame),
            None => Heard::Nothing,
        };
        match heard {
            Heard::Claim { vip, mac } => self.claimed(vip, ifindex, mac, now),
            Heard::Probe { vip, mac, answer } => self.probed(vip, ifindex, mac, answer, now),
            Heard::Question { vip, asker, mac, answer } => {
                self.recent.note(vip, ifindex, asker, mac, now);
                if self.places.contains_key(&(vip, ifindex)) {
                    self.counters.answered += 1;
                    self.send(ifindex, answer);
                } else {
                    self.counters.ignored += 1;
                }
            }
            Heard::Nothing => self.counters.ignored += 1,
            Heard::Own => self.counters.own += 1,
            Heard::Malformed => self.counters.malformed += 1,
        }
    }

    fn interpret(&self, mac: Mac, frame: &[u8]) -> Heard {
        match ethernet::Repr::parse(frame).map(|header| header.ethertype) {
            Ok(ethernet::ARP) => arp::Repr::parse(frame)
                .map_or(Heard::Malformed, |packet| self.interpret_arp(mac, packet)),
            Ok(ethernet::IPV6) => ndp::Repr::parse(frame)
                .map_or(Heard::Malformed, |packet| self.interpret_ndp(mac, packet)),
            Ok(_) => Heard::Nothing,
            Err(_) => Heard::Malformed,
        }
    }

    fn interpret_arp(&self, mac: Mac, packet: arp::Repr) -> Heard {
        let (sender, target) = (IpAddr::V4(packet.sender), IpAddr::V4(packet.target));
        if self.own.contains(&packet.source) || self.own.contains(&packet.sender_mac) {
            Heard::Own
        } else if self.vips.contains_key(&sender) {
            Heard::Claim { vip: sender, mac: packet.sender_mac }
        } else if packet.operation != arp::Operation::Request || !self.vips.contains_key(&target) {
            Heard::Nothing
        } else if packet.is_probe() {
            Heard::Probe { vip: target, mac: packet.sender_mac, answer: packet.reply(mac).to_vec() }
        } else {
            Heard::Question {
                vip: target,
                asker: sender,
                mac: packet.sender_mac,
                answer: packet.reply(mac).to_vec(),
            }
        }
    }

    fn interpret_ndp(&self, mac: Mac, packet: ndp::Repr) -> Heard {
        let vip = IpAddr::V6(packet.target);
        if self.own.contains(&packet.source_mac) {
            return Heard::Own;
        }
        if !self.vips.contains_key(&vip) {
            return Heard::Nothing;
        }
        match packet.message {
            // The network may have changed the source address of our own probe, but not its nonce
            // (RFC 7527 §4.2).
            Message::Solicitation { nonce: Some(nonce), .. }
                if packet.is_probe() && nonce == self.nonce(vip) =>
            {
                Heard::Own
            }
            Message::Advertisement { link_layer: Some(mac), .. } if self.own.contains(&mac) => {
                Heard::Own
            }
            Message::Advertisement { link_layer, .. } => {
                Heard::Claim { vip, mac: link_layer.unwrap_or(packet.source_mac) }
            }
            Message::Solicitation { .. } if packet.is_probe() => {
                Heard::Probe { vip, mac: packet.source_mac, answer: packet.answer(mac).to_vec() }
            }
            Message::Solicitation { .. } => {
                let for_us = packet.destination == packet.target
                    || packet.destination == ndp::solicited_node(packet.target);
                let answer = packet.answer(mac);
                let (asker, mac) = (IpAddr::V6(packet.source), answer.destination_mac);
                if for_us {
                    Heard::Question { vip, asker, mac, answer: answer.to_vec() }
                } else {
                    Heard::Nothing
                }
            }
        }
    }

    /// Somebody says that it has one of our VIPs.
    fn claimed(&mut self, vip: IpAddr, ifindex: u32, mac: Mac, now: Duration) {
        let quiet = self.vips.get(&vip).is_some_and(|known| known.quiet);
        if let Some(place) = self.places.get_mut(&(vip, ifindex)) {
            self.counters.contested += 1;
            // Each rival is told of, though not each is answered: the second may be the one to
            // yield to.
            if place.rival.is_none_or(|(rival, at)| rival != mac || now >= at + HEARD_INTERVAL) {
                place.rival = Some((mac, now));
                self.events.push_back(AnnouncerEvent::Contested { vip, ifindex, mac });
            }
            if quiet {
                return;
            }
            // Two hosts that both insist must not fill the network with it (RFC 5227 §2.4 allows
            // one defence per interval).
            let defends = place.contested.is_none_or(|last| now >= last + CONTEST_INTERVAL);
            if place.due > now + REPAIR_DELAY {
                // Or else the other's word may be the last one that clients heard until the next
                // refresh: it was not answered, or it overtook the answer.
                self.timers.cancel(place.due, Timer::Announce(vip, ifindex));
                place.due = now + REPAIR_DELAY;
                self.timers.add(place.due, Timer::Announce(vip, ifindex));
            }
            if defends {
                place.contested = Some(now);
                self.send_announcement(vip, ifindex);
            }
        } else if !self.refuse(vip, ifindex, mac, now)
            && !self.on_observed_claim(vip, ifindex, mac, now)
        {
            self.counters.ignored += 1;
        }
    }

    /// On standby: who has the VIP at present. False when it is none of our business there.
    fn on_observed_claim(&mut self, vip: IpAddr, ifindex: u32, mac: Mac, now: Duration) -> bool {
        let Some(known) = self
            .vips
            .get_mut(&vip)
            .filter(|known| known.standby && known.interfaces.contains(&ifindex))
        else {
            return false;
        };
        self.counters.heard += 1;
        if known
            .heard
            .is_none_or(|(i, m, at)| (i, m) != (ifindex, mac) || now >= at + HEARD_INTERVAL)
        {
            known.heard = Some((ifindex, mac, now));
            self.events.push_back(AnnouncerEvent::Heard { vip, ifindex, mac });
        }
        true
    }

    /// Somebody asks whether one of our VIPs is free. While we ask ourselves, that is a conflict
    /// for both (RFC 5227 §2.1.1).
    fn probed(&mut self, vip: IpAddr, ifindex: u32, mac: Mac, answer: Vec<u8>, now: Duration) {
        // Who hands over does not keep others from taking over.
        let quiet = self.vips.get(&vip).is_some_and(|known| known.quiet && !known.standby);
        if quiet {
            self.counters.ignored += 1;
        } else if let Some(place) = self.places.get_mut(&(vip, ifindex)) {
            self.counters.answered += 1;
            if place.defended.is_none_or(|last| now >= last + CONTEST_INTERVAL) {
                place.defended = Some(now);
                self.events.push_back(AnnouncerEvent::Defended { vip, ifindex, mac });
            }
            self.send(ifindex, answer);
        } else if !self.refuse(vip, ifindex, mac, now) {
            self.counters.ignored += 1;
            if self
                .vips
                .get(&vip)
                .is_some_and(|known| known.standby && known.interfaces.contains(&ifindex))
            {
                self.events.push_back(AnnouncerEvent::Asked { vip, ifindex, mac });
            }
        }
    }

    /// Ends the probing of a VIP that somebody else has; false when it is not being probed there.
    fn refuse(&mut self, vip: IpAddr, ifindex: u32, mac: Mac, now: Duration) -> bool {
        let Some(known) = self.vips.get_mut(&vip) else { return false };
        let AnnounceState::Probing { due, .. } = known.standing else { return false };
        if !known.interfaces.contains(&ifindex) {
            return false;
        }
        let retry = now + CONFLICT_RETRY + self.jitter.up_to(CONFLICT_RETRY / 4);
        known.standing = AnnounceState::Refused { due: retry };
        self.timers.cancel(due, Timer::Probe(vip));
        self.timers.add(retry, Timer::Probe(vip));
        self.counters.conflicts += 1;
        self.events.push_back(AnnouncerEvent::Conflict { vip, ifindex, mac });
        true
    }
}
