//! Where others reach the admin API of this proxy.
//!
//! One that takes connections on all addresses of its machine has none of its own. What others can use is
//! the address from which this proxy speaks to the Redis that it shares with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{UdpSocket, lookup_host};
use tokio::time::timeout;

use super::place::Address;

/// How long a look-up of the name of Redis, which was found just before, may take.
const LOOK_UP: Duration = Duration::from_secs(1);

/// The address for others of an admin API that is bound to `admin`.
pub(super) async fn reached_at(admin: SocketAddr, redis: &Address) -> SocketAddr {
    if !admin.ip().is_unspecified() {
        return admin;
    }
    let from = timeout(LOOK_UP, address_towards(redis, admin.is_ipv4())).await;
    from.ok().flatten().map_or(admin, |from| SocketAddr::new(from, admin.port()))
}

/// The address of this machine from which packets go to that server, of which it sends none.
async fn address_towards(redis: &Address, only_v4: bool) -> Option<IpAddr> {
    let servers = lookup_host((redis.host.as_str(), redis.port)).await.ok()?;
    for server in servers.filter(|server| server.is_ipv4() || !only_v4) {
        let any: IpAddr = if server.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        // It may be of a kind that this machine can't reach.
        let Ok(socket) = UdpSocket::bind((any, 0)).await else { continue };
        if socket.connect(server).await.is_ok()
            && let Ok(own) = socket.local_addr()
        {
            return Some(own.ip());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_listens_everywhere_is_reached_where_redis_is_reached_from() {
        for (admin, redis, reached) in [
            ("0.0.0.0:9900", "127.0.0.1", "127.0.0.1:9900"),
            ("[::]:9900", "127.0.0.1", "127.0.0.1:9900"),
            ("127.0.0.2:9900", "127.0.0.1", "127.0.0.2:9900"),
            ("192.0.2.1:9900", "127.0.0.1", "192.0.2.1:9900"),
            // It takes no IPv6, and nothing better is known.
            ("0.0.0.0:9900", "::1", "0.0.0.0:9900"),
        ] {
            let redis = Address { host: redis.to_owned(), port: 6379 };
            let found = reached_at(admin.parse().unwrap(), &redis).await;
            assert_eq!(found, reached.parse().unwrap(), "{admin}");
        }
    }
}
