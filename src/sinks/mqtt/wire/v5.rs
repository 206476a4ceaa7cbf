//! Packets of MQTT 5, with rumqttc's codec.

use std::time::Duration;

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck as ConnAckPacket, Connect, ConnectProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode, Filter,
    LastWill, Login, Packet, PingReq, PubAck as PubAckPacket, PubAckReason, PubComp, PubRec, Publish,
    PublishProperties, RetainForwardRule, Subscribe, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error, QoS};

use crate::sinks::broker::OFFLINE;

use super::super::message::Message;
use super::super::settings::Settings;
use super::super::topics::{Qos, Route};
use super::error::{self, ConnectionError, ErrorKind};
use super::event::{AckToken, ConnAck, Incoming, Outgoing, PACKET_BYTES_MAX, PubAck, Received};
use super::{ConnectOptions, KEEP_ALIVE, credentials};

/// The begin of the CONNACK of MQTT 3.1.1, which ends where that of MQTT 5 has its properties.
const CONNACK_311: [u8; 2] = [0x20, 0x02];

pub(super) fn connect(settings: &Settings, options: &ConnectOptions) -> Result<BytesMut, ConnectionError> {
    let connect = Connect {
        keep_alive: KEEP_ALIVE.as_secs() as u16,
        client_id: options.client_id.clone(),
        clean_start: options.session.is_none(),
        properties: Some(ConnectProperties {
            session_expiry_interval: options.session.map(|kept| u32::try_from(kept.as_secs()).unwrap_or(u32::MAX)),
            receive_maximum: options.receive_max,
            max_packet_size: Some(options.packet_bytes_max),
            ..ConnectProperties::new()
        }),
    };
    let login = credentials(settings).map(|(username, password)| Login::new(username, password));
    let will = options
        .will
        .as_ref()
        .map(|Route { topic, qos: level, is_retained }| LastWill::new(topic, OFFLINE, qos(*level), *is_retained, None));
    let mut out = BytesMut::new();
    write(&Packet::Connect(connect, will, login), &mut out)?;
    Ok(out)
}

pub(super) fn encode(packet: Outgoing, out: &mut BytesMut) -> Result<(), ConnectionError> {
    let packet = match packet {
        Outgoing::Publish(pkid, message) => Packet::Publish(publish(pkid, message)),
        Outgoing::Subscribe(pkid, filters, level) => {
            // A retained message comes once per new subscription, and a message keeps the retain flag it was published with.
            let filter = |path| Filter {
                preserve_retain: true,
                retain_forward_rule: RetainForwardRule::OnNewSubscribe,
                ..Filter::new::<String>(path, qos(level))
            };
            Packet::Subscribe(Subscribe { pkid, filters: filters.into_iter().map(filter).collect(), properties: None })
        }
        Outgoing::Acknowledge(AckToken::Puback(id)) => Packet::PubAck(PubAckPacket::new(id, None)),
        Outgoing::Acknowledge(AckToken::Pubrec(id)) => Packet::PubRec(PubRec::new(id, None)),
        Outgoing::Acknowledge(AckToken::None) => return Ok(()),
        Outgoing::PubComp(id) => Packet::PubComp(PubComp::new(id, None)),
        Outgoing::Ping => Packet::PingReq(PingReq),
        Outgoing::Disconnect => Packet::Disconnect(Disconnect::new(DisconnectReasonCode::NormalDisconnection)),
    };
    write(&packet, out)
}

fn write(packet: &Packet, out: &mut BytesMut) -> Result<(), ConnectionError> {
    packet.write(out, None).map(drop).map_err(|error| ConnectionError::other(error.to_string()))
}

/// Returns the publish of a message.
pub(super) fn publish(pkid: u16, message: Message) -> Publish {
    let Message {
        route: Route { topic, qos: level, is_retained: retain },
        body,
        content_type,
        correlation,
        attributes,
    } = message;
    let properties = PublishProperties {
        payload_format_indicator: (!body.is_empty()).then_some(1),
        content_type: content_type.map(str::to_owned),
        correlation_data: correlation,
        user_properties: attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..Default::default()
    };
    Publish { pkid, retain, ..Publish::new(topic, qos(level), body, Some(properties)) }
}

/// Takes the next packet out of what was read; `None` if its end has not come yet.
pub(super) fn decode(input: &mut BytesMut, bytes_max: u32) -> Result<Option<Incoming>, ConnectionError> {
    if input.starts_with(&CONNACK_311) {
        // A broker of MQTT 3.1.1 may accept what it cannot have understood, so whatever it answers, it is no MQTT 5.
        return Err(refused(ConnectReturnCode::RefusedProtocolVersion));
    }
    // rumqttc does not read a DISCONNECT without properties, or without a reason (§3.14.2).
    if let [0xE0, 0x00, ..] | [0xE0, 0x01, _, ..] = input[..] {
        let code = if input[1] == 0 { 0 } else { input[2] };
        let reason = DisconnectReasonCode::try_from(code).map_err(|error| error::unreadable(&error))?;
        return Err(hung_up(Disconnect::new(reason)));
    }
    let unread = input.len();
    let packet = match Packet::read(input, Some(bytes_max)) {
        Ok(packet) => packet,
        Err(Error::InsufficientBytes(_)) if input.len() == unread => return Ok(None),
        Err(Error::PayloadSizeLimitExceeded { pkt_size, .. }) => return Err(error::received_too_large(pkt_size)),
        // mosquitto's PUBACK over its `message_size_limit`; rumqttc does not know that reason code there.
        Err(Error::InvalidConnectReturnCode(0x95)) => return Err(sent_too_large()),
        Err(error) => return Err(error::unreadable(&error)),
    };
    Ok(Some(match packet {
        Packet::ConnAck(connack) => match connack.code {
            ConnectReturnCode::Success => Incoming::ConnAck(granted(&connack)),
            code => {
                let ConnectionError { kind, reason } = refused(code);
                let properties = connack.properties.map(|it| (it.reason_string, it.server_reference));
                return Err(ConnectionError::new(kind, reason + &words(properties)));
            }
        },
        Packet::PubAck(ack) => Incoming::PubAck(ack.pkid, puback(ack.reason)),
        Packet::SubAck(ack) => Incoming::SubAck(ack.pkid, ack.return_codes.iter().map(refusal).collect()),
        Packet::Publish(publish) => Incoming::Publish(received(publish)),
        Packet::PubRel(release) => Incoming::PubRel(release.pkid),
        Packet::PingResp(_) => Incoming::PingResponse,
        Packet::Disconnect(disconnect) => return Err(hung_up(disconnect)),
        _ => Incoming::Ignored,
    }))
}

fn granted(connack: &ConnAckPacket) -> ConnAck {
    let properties = connack.properties.as_ref();
    ConnAck {
        is_session_present: connack.session_present,
        receive_max: properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX),
        packet_bytes_max: properties
            .and_then(|p| p.max_packet_size)
            .map_or(PACKET_BYTES_MAX, |bytes| bytes.min(PACKET_BYTES_MAX)),
        can_retain: properties.and_then(|p| p.retain_available) != Some(0),
        can_acknowledge: properties.and_then(|p| p.max_qos) != Some(0),
        can_defer: true,
        keep_alive: properties.and_then(|p| p.server_keep_alive).map(|seconds| Duration::from_secs(seconds.into())),
    }
}

fn refusal(code: &SubscribeReasonCode) -> Option<String> {
    match code {
        SubscribeReasonCode::Success(_) => None,
        refusal => Some(format!("refused ({refusal:?})")),
    }
}

fn received(publish: Publish) -> Received {
    let properties = publish.properties.unwrap_or_default();
    Received {
        // A topic that is not UTF-8 violates the protocol (MQTT 5 §1.5.4); an empty one is none of ours.
        topic: String::from_utf8(publish.topic.to_vec()).unwrap_or_default(),
        body: publish.payload,
        is_retained: publish.retain,
        expires_in: properties.message_expiry_interval.map(|seconds| Duration::from_secs(seconds.into())),
        response_topic: properties.response_topic,
        correlation: properties.correlation_data,
        user: properties.user_properties.into_iter().find(|(name, _)| name == "user").map(|(_, user)| user),
        ack_token: match publish.qos {
            QoS::AtMostOnce => AckToken::None,
            QoS::AtLeastOnce => AckToken::Puback(publish.pkid),
            QoS::ExactlyOnce => AckToken::Pubrec(publish.pkid),
        },
    }
}

fn puback(reason: PubAckReason) -> PubAck {
    use PubAckReason as Reason;
    match reason {
        // Without subscribers a publish is a success too: 0x10 is below 0x80 (MQTT 5 §2.4).
        Reason::Success | Reason::NoMatchingSubscribers => PubAck::Accepted,
        Reason::NotAuthorized => PubAck::Refused("the broker does not allow this user to publish to the topic"),
        Reason::TopicNameInvalid => PubAck::Refused("the broker does not accept the topic"),
        Reason::PayloadFormatInvalid => PubAck::Refused("the broker finds the payload to be no UTF-8"),
        Reason::QuotaExceeded => PubAck::Deferred("a quota of the broker is used up"),
        // No word on whether it is this message's fault, so none is dead-lettered for it.
        Reason::UnspecifiedError | Reason::ImplementationSpecificError | Reason::PacketIdentifierInUse => {
            PubAck::Deferred("the broker could not take a message, and gives no reason")
        }
    }
}

fn refused(code: ConnectReturnCode) -> ConnectionError {
    use ConnectReturnCode as Code;
    match code {
        Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => {
            ConnectionError::new(ErrorKind::VersionRefused, "the broker does not speak MQTT 5")
        }
        Code::BadClientId | Code::ClientIdentifierNotValid => ConnectionError::other(error::BAD_CLIENT_ID),
        Code::BadUserNamePassword => ConnectionError::other(error::BAD_PASSWORD),
        Code::NotAuthorized => ConnectionError::other(error::NOT_AUTHORIZED),
        Code::QoSNotSupported => {
            ConnectionError::new(ErrorKind::QosRefused, format!("{}: {code:?}", error::WILL_REFUSED))
        }
        Code::RetainNotSupported => {
            ConnectionError::new(ErrorKind::RetainRefused, format!("{}: {code:?}", error::WILL_REFUSED))
        }
        Code::QuotaExceeded | Code::ConnectionRateExceeded | Code::ServerBusy => {
            ConnectionError::new(ErrorKind::Quota, format!("the broker has no room for us now: {code:?}"))
        }
        code => ConnectionError::other(format!("the broker refused the connection: {code:?}")),
    }
}

fn hung_up(Disconnect { reason_code, properties }: Disconnect) -> ConnectionError {
    use DisconnectReasonCode as Reason;
    let said = words(properties.map(|it| (it.reason_string, it.server_reference)));
    let reason = format!("the broker hung up: {reason_code:?}{said}");
    match reason_code {
        // Compared by the namesake suspicion: another bridge may have our client id.
        Reason::SessionTakenOver => ConnectionError::other(error::TAKEN_OVER),
        Reason::PacketTooLarge => sent_too_large(),
        Reason::QuotaExceeded | Reason::MessageRateTooHigh => ConnectionError::new(ErrorKind::Quota, reason),
        _ => ConnectionError::other(reason),
    }
}

/// Returns what a broker adds to a refusal: its Reason String, and its Server Reference, which is not followed.
fn words(properties: Option<(Option<String>, Option<String>)>) -> String {
    let (reason, reference) = properties.unwrap_or_default();
    let reason = reason.map(|text| format!(" ({text})")).unwrap_or_default();
    let reference = reference.map(|server| format!("; it refers to another server, to be written in `url`: {server}"));
    reason + &reference.unwrap_or_default()
}

fn sent_too_large() -> ConnectionError {
    ConnectionError::new(ErrorKind::SentTooLarge, error::SENT_TOO_LARGE)
}

fn qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_broker_adds_to_a_refusal_is_shown() {
        let decoded = |bytes: &[u8]| decode(&mut BytesMut::from(bytes), PACKET_BYTES_MAX).unwrap_err().reason;
        let connack = [&[0x20, 20, 0, 0x9D, 17, 0x1F, 0, 4][..], b"full", &[0x1C, 0, 7], b"b:1883 "].concat();
        let reason = decoded(&connack);
        assert!(
            reason.contains("ServerMoved (full); it refers to another server, to be written in `url`: b:1883"),
            "{reason}"
        );
        let disconnect = [&[0xE0, 12, 0x9C, 10, 0x1C, 0, 7][..], b"b:1883 "].concat();
        let reason = decoded(&disconnect);
        assert!(reason.contains("UseAnotherServer; it refers") && reason.contains("b:1883"), "{reason}");
    }

    #[test]
    fn a_disconnect_without_properties_or_reason_is_read() {
        let decoded = |bytes: &[u8]| decode(&mut BytesMut::from(bytes), PACKET_BYTES_MAX);
        // As mosquitto sends it to a packet above its limit.
        assert_eq!(decoded(&[0xE0, 0x01, 0x95]).unwrap_err().kind, ErrorKind::SentTooLarge);
        assert_eq!(decoded(&[0xE0, 0x01, 0x8E]).unwrap_err().reason, error::TAKEN_OVER);
        assert_eq!(decoded(&[0xE0, 0x00]).unwrap_err().kind, ErrorKind::Other);
        assert_eq!(decoded(&[0xE0, 0x01, 0x03]).unwrap_err().kind, ErrorKind::Unreadable);
        assert!(decoded(&[0xE0, 0x01]).unwrap().is_none(), "its end has not come yet");
    }
}
