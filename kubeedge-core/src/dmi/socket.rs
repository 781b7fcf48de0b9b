//! Unix sockets: serving on one, and calling who serves on one.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::transport::{
    Endpoint,
    server::{Connected, UdsConnectInfo},
};

use super::authority::AuthorityFilter;

/// The longest path of a socket in bytes: 107 is what Linux takes, and 4 are for the name under which it is made.
pub const PATH_MAX: usize = 103;

/// Owner only, who is root: a mapper can drive every device of its protocol.
const MODE: u32 = 0o600;

/// Says why nobody can serve, or be called, on a socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The path cannot be a socket's.
    #[error("{}: {why}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process serves there.
    #[error("{}: another process serves on this socket; stop it first", .0.display())]
    InUse(PathBuf),
    /// The system refused.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Checks that a path can be a socket's: absolute, without NUL, and not too long for the system.
///
/// # Errors
/// If it cannot, saying why.
pub fn check_path(path: &Path) -> Result<&str, SocketError> {
    let wrong = |why: String| SocketError::Path { path: path.to_owned(), why };
    let text = path.to_str().ok_or_else(|| wrong("it is not UTF-8".to_owned()))?;
    if !path.is_absolute() || text.contains('\0') || text.ends_with('/') {
        return Err(wrong("it must be the absolute path of a socket".to_owned()));
    }
    if text.len() > PATH_MAX {
        return Err(wrong(format!("it has {} bytes; the path of a socket may have {PATH_MAX}", text.len())));
    }
    Ok(text)
}

/// A socket on which gRPC is served. The file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
    connections: Arc<Semaphore>,
}

impl Socket {
    /// Begins to listen at `path`, for at most `connections_max` connections at once; more wait.
    ///
    /// A file of an earlier run is replaced, so that who dials sees the one or the other and never nothing. Only
    /// the owner may connect.
    ///
    /// # Errors
    /// If the path cannot be a socket's, another process serves there, something else is there, or the system refuses.
    pub fn listen(path: &Path, connections_max: usize) -> Result<Self, SocketError> {
        check_path(path)?;
        let io = |what| move |source| SocketError::Io { what, path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                let why = "something that is no socket is there".to_owned();
                return Err(SocketError::Path { path: path.to_owned(), why });
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(SocketError::InUse(path.to_owned()));
            }
            Ok(_) | Err(_) => {}
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io("create the folder of"))?;
        }
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(io("listen at"))?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(MODE)).map_err(io("protect"))?;
        fs::rename(&fresh, path).map_err(io("put in place"))?;
        let file = SocketFile { path: path.to_owned(), id: file_id(path) };
        Ok(Self { listener, file, connections: Arc::new(Semaphore::new(connections_max.max(1))) })
    }

    /// The connections, for `serve_with_incoming` of tonic's server. It never ends.
    pub fn connections(self) -> impl Stream<Item = io::Result<Connection>> + Send {
        stream::unfold(self, |socket| async move {
            let permit = socket.connections.clone().acquire_owned().await.ok()?;
            let stream = socket.accept().await;
            Some((Ok(Connection { stream, filter: AuthorityFilter::default(), _permit: permit }), socket))
        })
    }

    async fn accept(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    tracing::warn!(socket = %self.file.path.display(), %error, "a connection was not accepted");
                    // Too many open files, most likely: some are closed sooner or later.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// The file of a socket, removed at the end unless it has become another's.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: Option<FileId>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && file_id(&self.path) == self.id {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Tells one socket from the next at the same path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
    /// Nanoseconds since the epoch; an inode's number may be given again at once.
    changed: i128,
}

/// What is at `path`, if anything is.
pub fn file_id(path: &Path) -> Option<FileId> {
    let found = fs::metadata(path).ok()?;
    let changed = i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec());
    Some(FileId { device: found.dev(), inode: found.ino(), changed })
}

/// One connection, in which every `:authority` is one that the HTTP library takes.
#[derive(Debug)]
pub struct Connection<S = UnixStream> {
    stream: S,
    filter: AuthorityFilter,
    _permit: OwnedSemaphorePermit,
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.filter.filter(&mut buffer.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

/// Who serves at `path`, to be connected to.
///
/// # Errors
/// If the path cannot be a socket's.
pub fn endpoint(path: &Path, deadline: Duration) -> Result<Endpoint, SocketError> {
    let text = check_path(path)?;
    let wrong =
        |error: tonic::transport::Error| SocketError::Path { path: path.to_owned(), why: error.to_string() };
    let endpoint = Endpoint::from_shared(format!("unix://{text}")).map_err(wrong)?;
    Ok(endpoint.connect_timeout(deadline).timeout(deadline))
}
