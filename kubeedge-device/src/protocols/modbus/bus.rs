//! One connection to a device or a gateway, and the requests that take turns on it.

use std::{fmt, time::Duration};

use kubeedge_core::device::DeviceError;
use tokio::{net::TcpStream, sync::Mutex, time::timeout};
use tokio_modbus::{
    ExceptionCode, Slave,
    client::{Client, Context, rtu, tcp},
    prelude::{Request, Response},
    slave::SlaveContext,
};

/// How frames are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Framing {
    Tcp,
    RtuOverTcp,
}

/// A connection that devices share. It is made when it is needed, and again after anything went wrong: an answer that
/// came too late must not be taken for that of the next request.
pub(super) struct Bus {
    host: String,
    port: u16,
    framing: Framing,
    /// Absent while there is none, and while a request is under way: if that is dropped, so is the connection.
    context: Mutex<Option<Context>>,
}

impl Bus {
    pub(super) fn new(host: &str, port: u16, framing: Framing) -> Self {
        Self { host: host.to_owned(), port, framing, context: Mutex::default() }
    }

    /// Makes the connection if there is none.
    pub(super) async fn connect(&self, patience: Duration) -> Result<(), String> {
        let mut context = self.context.lock().await;
        if context.is_none() {
            *context = Some(self.dial(patience).await?);
        }
        Ok(())
    }

    async fn dial(&self, patience: Duration) -> Result<Context, String> {
        let Self { host, port, framing, .. } = self;
        let socket = match timeout(patience, TcpStream::connect((host.as_str(), *port))).await {
            Ok(socket) => socket.map_err(|error| format!("{host}:{port}: {error}"))?,
            Err(_) => return Err(format!("{host}:{port}: no connection within {patience:?}")),
        };
        // Frames are small, and each is waited for.
        socket.set_nodelay(true).map_err(|error| format!("{host}:{port}: {error}"))?;
        Ok(match framing {
            Framing::Tcp => tcp::attach(socket),
            Framing::RtuOverTcp => rtu::attach(socket),
        })
    }

    /// Makes a request of a device.
    pub(super) async fn call(
        &self,
        slave: u8,
        patience: Duration,
        request: Request<'static>,
    ) -> Result<Response, DeviceError> {
        let mut place = self.context.lock().await;
        let mut context = match place.take() {
            Some(context) => context,
            None => self.dial(patience).await.map_err(DeviceError::Unreachable)?,
        };
        context.set_slave(Slave(slave));
        let who = || format!("{}:{}, slave {slave}", self.host, self.port);
        match timeout(patience, context.call(request)).await {
            Err(_) => Err(DeviceError::Unreachable(format!("{}: no answer within {patience:?}", who()))),
            Ok(Err(error)) => {
                let what = cut(&error.to_string());
                Err(DeviceError::Unreachable(format!("{}: no answer to what was asked: {what}", who())))
            }
            Ok(Ok(answer)) => {
                *place = Some(context);
                answer.map_err(|exception| refusal(exception, &who()))
            }
        }
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bus({}:{}, {:?})", self.host, self.port, self.framing)
    }
}

fn refusal(exception: ExceptionCode, who: &str) -> DeviceError {
    let why = match exception {
        ExceptionCode::IllegalFunction => "it has no such kind of register, or takes no values for it",
        ExceptionCode::IllegalDataAddress => "it has no register of this offset, or not so many",
        ExceptionCode::IllegalDataValue => "it does not take this value, or this number of registers",
        ExceptionCode::ServerDeviceFailure => "it has failed",
        ExceptionCode::Acknowledge => "it will take longer",
        ExceptionCode::ServerDeviceBusy => "it is busy",
        ExceptionCode::MemoryParityError => "its memory is damaged",
        ExceptionCode::GatewayPathUnavailable => {
            return DeviceError::Unreachable(format!("{who}: the gateway has no way to it"));
        }
        ExceptionCode::GatewayTargetDevice => {
            return DeviceError::Unreachable(format!("{who}: it does not answer the gateway"));
        }
        ExceptionCode::Custom(_) => "it says no",
    };
    DeviceError::Invalid(format!("{who}: {why} (exception {})", u8::from(exception)))
}

/// What a device sent may be long.
fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}
