//! The names of the errors that sockets give, as Linkerd writes them.

use std::io;

use rustix::io::Errno;

/// The name of an error's number; empty where it has none, as errors of TLS and of protocols.
pub(crate) fn name(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(errno) => of(errno),
        None => "",
    }
}

fn of(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM => "EPERM",
        Errno::INTR => "EINTR",
        Errno::IO => "EIO",
        Errno::BADF => "EBADF",
        Errno::NOMEM => "ENOMEM",
        Errno::ACCESS => "EACCES",
        Errno::FAULT => "EFAULT",
        Errno::INVAL => "EINVAL",
        Errno::NFILE => "ENFILE",
        Errno::MFILE => "EMFILE",
        Errno::PIPE => "EPIPE",
        Errno::NOSYS => "ENOSYS",
        Errno::PROTO => "EPROTO",
        Errno::NOTSOCK => "ENOTSOCK",
        Errno::MSGSIZE => "EMSGSIZE",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::ADDRINUSE => "EADDRINUSE",
        Errno::ADDRNOTAVAIL => "EADDRNOTAVAIL",
        Errno::NETDOWN => "ENETDOWN",
        Errno::NETUNREACH => "ENETUNREACH",
        Errno::NETRESET => "ENETRESET",
        Errno::CONNABORTED => "ECONNABORTED",
        Errno::CONNRESET => "ECONNRESET",
        Errno::NOBUFS => "ENOBUFS",
        Errno::ISCONN => "EISCONN",
        Errno::NOTCONN => "ENOTCONN",
        Errno::SHUTDOWN => "ESHUTDOWN",
        Errno::TIMEDOUT => "ETIMEDOUT",
        Errno::CONNREFUSED => "ECONNREFUSED",
        Errno::HOSTDOWN => "EHOSTDOWN",
        Errno::HOSTUNREACH => "EHOSTUNREACH",
        Errno::CANCELED => "ECANCELED",
        _ => "UNKNOWN_ERRNO",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_kernels_names() {
        let kernel = |errno: Errno| name(&io::Error::from(errno));
        assert_eq!(kernel(Errno::CONNRESET), "ECONNRESET");
        assert_eq!(kernel(Errno::PIPE), "EPIPE");
        assert_eq!(kernel(Errno::XDEV), "UNKNOWN_ERRNO");
        assert_eq!(
            name(&io::ErrorKind::UnexpectedEof.into()),
            "",
            "nothing that the kernel said"
        );
    }
}
