//! Packets of MQTT 3.1.1, with rumqttc's codec.

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{
    Connect, ConnectReturnCode, LastWill, Login, Packet, PubAck as PubAckPacket, PubComp, PubRec, Publish, Subscribe,
    SubscribeFilter, SubscribeReasonCode,
};
use rumqttc::mqttbytes::{Error, QoS};

use crate::sinks::broker::OFFLINE;

use super::super::settings::Settings;
use super::super::topics::{Qos, Route};
use super::error::{self, ConnectionError, ErrorKind};
use super::event::{AckToken, ConnAck, Incoming, Outgoing, PACKET_BYTES_MAX, PubAck, Received};
use super::{ConnectOptions, KEEP_ALIVE, credentials};

pub(super) fn connect(settings: &Settings, options: &ConnectOptions) -> Result<BytesMut, ConnectionError> {
    let mut connect = Connect::new(&options.client_id);
    connect.keep_alive = KEEP_ALIVE.as_secs() as u16;
    connect.clean_session = options.session.is_none();
    connect.login = credentials(settings).map(|(username, password)| Login::new(username, password));
    connect.last_will = options
        .will
        .as_ref()
        .map(|Route { topic, qos: level, is_retained }| LastWill::new(topic, OFFLINE, qos(*level), *is_retained));
    let mut out = BytesMut::new();
    write(&Packet::Connect(connect), &mut out)?;
    Ok(out)
}

pub(super) fn encode(packet: Outgoing, out: &mut BytesMut) -> Result<(), ConnectionError> {
    let packet = match packet {
        Outgoing::Publish(pkid, message) => {
            let Route { topic, qos: level, is_retained: retain } = message.route;
            Packet::Publish(Publish { dup: false, qos: qos(level), retain, topic, pkid, payload: message.body })
        }
        Outgoing::Subscribe(pkid, filters, level) => {
            let filters = filters.into_iter().map(|path| SubscribeFilter::new(path, qos(level))).collect();
            Packet::Subscribe(Subscribe { pkid, filters })
        }
        Outgoing::Acknowledge(AckToken::Puback(id)) => Packet::PubAck(PubAckPacket::new(id)),
        Outgoing::Acknowledge(AckToken::Pubrec(id)) => Packet::PubRec(PubRec::new(id)),
        Outgoing::Acknowledge(AckToken::None) => return Ok(()),
        Outgoing::PubComp(id) => Packet::PubComp(PubComp::new(id)),
        Outgoing::Ping => Packet::PingReq,
        Outgoing::Disconnect => Packet::Disconnect,
    };
    write(&packet, out)
}

fn write(packet: &Packet, out: &mut BytesMut) -> Result<(), ConnectionError> {
    packet.write(out, usize::MAX).map(drop).map_err(|error| ConnectionError::other(error.to_string()))
}

/// Takes the next packet out of what was read; `None` if its end has not come yet.
pub(super) fn decode(input: &mut BytesMut, bytes_max: u32) -> Result<Option<Incoming>, ConnectionError> {
    let unread = input.len();
    let packet = match Packet::read(input, bytes_max as usize) {
        Ok(packet) => packet,
        Err(Error::InsufficientBytes(_)) if input.len() == unread => return Ok(None),
        Err(Error::PayloadSizeLimitExceeded(bytes)) => return Err(error::received_too_large(bytes)),
        Err(error) => return Err(error::unreadable(&error)),
    };
    Ok(Some(match packet {
        Packet::ConnAck(connack) => match connack.code {
            ConnectReturnCode::Success => Incoming::ConnAck(granted(connack.session_present)),
            code => return Err(refused(code)),
        },
        Packet::PubAck(ack) => Incoming::PubAck(ack.pkid, PubAck::Accepted),
        Packet::SubAck(ack) => Incoming::SubAck(ack.pkid, ack.return_codes.iter().map(refusal).collect()),
        Packet::Publish(Publish { qos, retain, topic, pkid, payload, .. }) => Incoming::Publish(Received {
            ack_token: match qos {
                QoS::AtMostOnce => AckToken::None,
                QoS::AtLeastOnce => AckToken::Puback(pkid),
                QoS::ExactlyOnce => AckToken::Pubrec(pkid),
            },
            topic,
            body: payload,
            is_retained: retain,
            ..Received::default()
        }),
        Packet::PubRel(release) => Incoming::PubRel(release.pkid),
        Packet::PingResp => Incoming::PingResponse,
        _ => Incoming::Ignored,
    }))
}

/// MQTT 3.1.1 has no way to state limits or abilities: what a broker lacks shows when it closes the connection.
fn granted(is_session_present: bool) -> ConnAck {
    ConnAck {
        is_session_present,
        receive_max: u16::MAX,
        packet_bytes_max: PACKET_BYTES_MAX,
        can_retain: true,
        can_acknowledge: true,
        can_defer: false,
        keep_alive: None,
    }
}

fn refusal(code: &SubscribeReasonCode) -> Option<String> {
    match code {
        SubscribeReasonCode::Success(_) => None,
        SubscribeReasonCode::Failure => Some("refused (0x80)".to_owned()),
    }
}

fn refused(code: ConnectReturnCode) -> ConnectionError {
    use ConnectReturnCode as Code;
    match code {
        Code::RefusedProtocolVersion => {
            ConnectionError::new(ErrorKind::VersionRefused, "the broker does not speak MQTT 3.1.1")
        }
        Code::BadClientId => ConnectionError::other(error::BAD_CLIENT_ID),
        Code::BadUserNamePassword => ConnectionError::other(error::BAD_PASSWORD),
        Code::NotAuthorized => ConnectionError::other(error::NOT_AUTHORIZED),
        code => ConnectionError::other(format!("the broker refused the connection: {code:?}")),
    }
}

fn qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
    }
}
