//! Registers and their values; devices that send rubbish. What a real server says is in `tests/devices.rs`.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_modbus::prelude::{Request, Response};

use super::*;

fn spec(port: u16, mode: &str, visitor: &str, value_type: &str) -> DeviceSpec {
    let device = format!(
        r#"{{"metadata":{{"namespace":"default","name":"m-1"}},"spec":{{"protocol":{{"protocolName":"modbus",
            "configData":{{"ip":"127.0.0.1","port":"{port}","slaveID":1,"mode":"{mode}","timeout":200}}}},
            "properties":[{{"name":"p","visitors":{{"protocolName":"modbus","configData":{visitor}}}}}]}}}}"#
    );
    let model = format!(r#"{{"spec":{{"properties":[{{"name":"p","type":"{value_type}"}}]}}}}"#);
    DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap()
}

fn register(visitor: &str, value_type: &str) -> (Result<Register, String>, PropertySpec) {
    let property = spec(1, "TCP", visitor, value_type).properties.remove(0);
    (Register::read(&property), property)
}

#[test]
#[expect(clippy::wildcard_enum_match_arm, reason = "the library's requests: the others are a failure")]
fn registers_become_values_and_back() {
    let holding = |more: &str| format!(r#"{{"register":"HoldingRegister","offset":5{more}}}"#);
    for (more, value_type, words, value) in [
        ("", "INT", vec![7], "7"),
        (r#","limit":1"#, "INT", vec![0xFFFE], "65534"),
        (r#","dataType":"int16""#, "INT", vec![0xFFFE], "-2"),
        (r#","limit":1,"scale":0.1"#, "DOUBLE", vec![215], "21.5"),
        (r#","limit":1,"scale":0.1"#, "FLOAT", vec![3], "0.3"),
        (r#","dataType":"int16","scale":0.1"#, "FLOAT", vec![0xFF85], "-12.3"),
        ("", "FLOAT", vec![0x41AC, 0x0000], "21.5"),
        ("", "FLOAT", vec![0x41AA, 0x6666], "21.3"),
        (r#","limit":2,"isRegisterSwap":true"#, "FLOAT", vec![0x6666, 0x41AA], "21.3"),
        (r#","limit":2,"isSwap":true"#, "FLOAT", vec![0xAA41, 0x6666], "21.3"),
        (r#","limit":2"#, "DOUBLE", vec![0x41AA, 0x6666], "21.3"),
        ("", "DOUBLE", vec![0x4035, 0x8000, 0, 0], "21.5"),
        (r#","limit":2"#, "INT", vec![1, 2], "65538"),
        (r#","limit":4"#, "INT", vec![0x0020, 0, 0, 1], "9007199254740993"),
        ("", "BOOLEAN", vec![1], "true"),
        (r#","limit":3"#, "STRING", vec![0x6865, 0x6C6C, 0x6F00], "hello"),
        (r#","limit":2"#, "BYTES", vec![0x0102, 0x0300], "AQIDAA=="),
    ] {
        let (register, property) = register(&holding(more), value_type);
        let register = register.unwrap();
        let read = register.value(&property, Response::ReadHoldingRegisters(words.clone())).unwrap();
        assert_eq!(read, value, "{more} {value_type}");
        property.check(&read).unwrap();
        let written = match register.write(&property, value).unwrap() {
            Request::WriteSingleRegister(5, word) => vec![word],
            Request::WriteMultipleRegisters(5, words) => words.into_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(written, words, "{more} {value_type}");
    }
}

#[test]
fn coils_become_values_and_back() {
    let (coil, property) = register(r#"{"register":"CoilRegister","offset":3}"#, "BOOLEAN");
    let coil = coil.unwrap();
    // One coil comes in a byte of eight.
    let mut bits = vec![false; 8];
    bits[0] = true;
    assert_eq!(coil.value(&property, Response::ReadCoils(bits)).unwrap(), "true");
    assert_eq!(coil.write(&property, "false").unwrap(), Request::WriteSingleCoil(3, false));
    let (coils, property) = register(r#"{"register":"CoilRegister","offset":3,"limit":4}"#, "INT");
    let coils = coils.unwrap();
    assert_eq!(coils.value(&property, Response::ReadCoils(vec![true, false, true, true])).unwrap(), "13");
    let bits = vec![true, false, true, true];
    assert_eq!(coils.write(&property, "13").unwrap(), Request::WriteMultipleCoils(3, bits.into()));
    assert!(coils.write(&property, "16").is_err());
}

#[test]
fn a_visitor_that_cannot_work_is_refused_by_its_key() {
    for (visitor, value_type, expected) in [
        ("{}", "INT", "register is missing"),
        (r#"{"register":"holding"}"#, "INT", "register is \"holding\""),
        (r#"{"register":"HoldingRegister"}"#, "INT", "offset is missing"),
        (r#"{"register":"HoldingRegister","offset":70000}"#, "INT", "offset is 70000"),
        (r#"{"register":"HoldingRegister","offset":"x"}"#, "INT", "offset is \"x\""),
        (r#"{"register":"HoldingRegister","offset":0,"limit":3}"#, "INT", "limit is 3"),
        (r#"{"register":"HoldingRegister","offset":0,"limit":126}"#, "STRING", "limit is 126"),
        (r#"{"register":"HoldingRegister","offset":65535,"limit":2}"#, "INT", "offset 65535 and limit 2"),
        (r#"{"register":"HoldingRegister","offset":0,"scale":0}"#, "INT", "scale is zero"),
        (r#"{"register":"HoldingRegister","offset":0,"isSwap":1}"#, "INT", "isSwap is 1"),
        (r#"{"register":"HoldingRegister","offset":0,"dataType":"bcd"}"#, "INT", "dataType is \"bcd\""),
    ] {
        let error = register(visitor, value_type).0.unwrap_err();
        assert!(error.starts_with(expected), "{visitor}: {error}");
    }
}

#[test]
fn a_value_that_the_registers_cannot_have_is_refused() {
    let (tenths, property) =
        register(r#"{"register":"HoldingRegister","offset":0,"limit":1,"scale":0.1}"#, "DOUBLE");
    let error = tenths.unwrap().write(&property, "21.57").unwrap_err();
    assert_eq!(error, "21.57 is no multiple of 0.1; 21.6 is near it");
    let (word, property) = register(r#"{"register":"HoldingRegister","offset":0}"#, "INT");
    for bad in ["65536", "-1"] {
        assert!(word.as_ref().unwrap().write(&property, bad).is_err(), "{bad}");
    }
    let (text, property) = register(r#"{"register":"HoldingRegister","offset":0,"limit":2}"#, "STRING");
    assert!(text.unwrap().write(&property, "hello").is_err());
    let (input, property) = register(r#"{"register":"InputRegister","offset":0}"#, "INT");
    assert!(input.unwrap().write(&property, "1").is_err());
}

proptest! {
    #[test]
    fn an_answer_of_any_length_is_a_value_or_an_error(
        words in prop::collection::vec(any::<u16>(), 0..8),
        limit in prop_oneof![Just(1), Just(2), Just(4)],
        value_type in prop_oneof![Just("INT"), Just("FLOAT"), Just("DOUBLE"), Just("STRING"), Just("BOOLEAN")],
        swap: bool,
    ) {
        let visitor = format!(
            r#"{{"register":"HoldingRegister","offset":0,"limit":{limit},"scale":3,"isSwap":{swap}}}"#
        );
        let (register, property) = register(&visitor, value_type);
        if let Ok(register) = register {
            let right = words.len() == usize::from(limit as u16);
            let value = register.value(&property, Response::ReadHoldingRegisters(words));
            prop_assert!(right || value.is_err());
        }
    }
}

#[test]
fn protocol_settings_are_checked_by_their_keys() {
    let read = |config: &str| {
        let mut spec = spec(1, "TCP", r#"{"register":"CoilRegister","offset":0}"#, "INT");
        spec.protocol_config = serde_json::from_str(config).unwrap();
        Connection::read(&spec)
    };
    let connection = read(r#"{"ip":"10.0.0.5","slaveID":"7"}"#).unwrap();
    assert_eq!((connection.address.port, connection.slave), (502, 7));
    for (config, expected) in [
        ("{}", "ip is missing"),
        (r#"{"serialPort":"/dev/ttyS0","baudRate":9600}"#, "serialPort: "),
        (r#"{"ip":"a","port":0}"#, "port is 0"),
        (r#"{"ip":"a","slaveID":300}"#, "slaveID is 300"),
        (r#"{"ip":"a","mode":"ASCII"}"#, "mode is \"ASCII\""),
    ] {
        let error = read(config).unwrap_err();
        assert!(error.starts_with(expected), "{config}: {error}");
    }
}

/// A server that does with each connection what it is told, after the first request has come.
async fn server<F>(answer: impl Fn(usize, TcpStream) -> F + Send + 'static) -> (u16, JoinHandle<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut number = 0;
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 260];
            if socket.read(&mut request).await.is_ok() {
                tokio::spawn(answer(number, socket));
            }
            number += 1;
        }
    });
    (port, task)
}

#[tokio::test]
async fn rubbish_short_frames_and_silence_are_errors_that_end_in_time() {
    // A right answer has the transaction 0, and the function 3 with one register.
    let answers: [&'static [u8]; 9] = [
        b"",
        b"\0",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0\0\0\0\0\x05\x01\x03\x02\0",
        b"\0\0\0\0\xff\xff\x01\x03\x02\0\x07",
        b"\x99\x99\0\0\0\x05\x01\x03\x02\0\x07",
        b"\0\0\0\0\0\x05\x01\x04\x02\0\x07",
        b"\0\0\0\0\0\x05\x01\x03\xff\0\x07",
        b"\0\0\0\0\0\x03\x01\x99\x02",
    ];
    for mode in ["TCP", "RTU"] {
        let (port, server) = server(move |number, mut socket| async move {
            let answer = answers[number % answers.len()];
            let _ = socket.write_all(answer).await;
            if number % 2 == 0 {
                // It stays open and says no more.
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
        })
        .await;
        let spec = spec(port, mode, r#"{"register":"HoldingRegister","offset":0}"#, "INT");
        let mut handle = Modbus::default().open(&spec).await.unwrap();
        for answer in answers {
            let begun = Instant::now();
            let read = handle.read(&spec.properties[0]).await;
            assert!(read.is_err(), "{mode} {answer:?}: {read:?}");
            assert!(begun.elapsed() < Duration::from_secs(2), "{mode} {answer:?}");
        }
        server.abort();
    }
}

#[tokio::test]
async fn any_bytes_at_all_are_an_error_or_a_value_and_no_panic() {
    let (port, server) = server(|number, mut socket| async move {
        let mut random = number as u64 + 1;
        let bytes: Vec<u8> = (0..300)
            .map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random.to_le_bytes()[0]
            })
            .collect();
        // A header that fits, so that what follows is looked at.
        let _ = socket.write_all(&[0, 0, 0, 0, 0, (number % 20) as u8, 1]).await;
        let _ = socket.write_all(&bytes[..number % 300]).await;
    })
    .await;
    let spec = spec(port, "TCP", r#"{"register":"HoldingRegister","offset":0}"#, "INT");
    for _ in 0..200 {
        let mut handle = Modbus::default().open(&spec).await.unwrap();
        let _ = handle.read(&spec.properties[0]).await;
    }
    server.abort();
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_not_taken_for_the_next() {
    let (port, server) = server(|number, mut socket| async move {
        if number == 0 {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let _ = socket.write_all(&[0, 0, 0, 0, 0, 5, 1, 3, 2, 0, number as u8]).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    })
    .await;
    let spec = spec(port, "TCP", r#"{"register":"HoldingRegister","offset":0}"#, "INT");
    let mut handle = Modbus::default().open(&spec).await.unwrap();
    let error = handle.read(&spec.properties[0]).await.unwrap_err();
    assert!(
        matches!(&error, DeviceError::Unreachable(why) if why.contains("no answer within 200ms")),
        "{error}"
    );
    assert_eq!(handle.read(&spec.properties[0]).await.unwrap(), "1");
    server.abort();
}
