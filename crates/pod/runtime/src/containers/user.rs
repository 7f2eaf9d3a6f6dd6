//! Who a container runs as: from its configuration, its image, and the image's /etc/passwd and /etc/group.
//!
//! The files are read by descriptor inside the root file system and parsed here; no name service of the host is asked.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use keelson_cri::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};
use keelson_sys::path::Root;
use serde::{Deserialize, Serialize};

/// Larger account files are cut off.
const MAX_FILE: u64 = 4 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// With the primary group, as upstream reports them.
    pub groups: Vec<u32>,
    /// The home directory, if the account has one.
    pub home: Option<String>,
}

/// The account files of a root file system.
#[derive(Debug, Default)]
pub struct Accounts {
    users: Vec<Account>,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Accounts {
    pub fn read(root: &Root) -> io::Result<Accounts> {
        let file = |path: &str| match root.read(Path::new(path), MAX_FILE) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            // No file, no accounts: many images have none.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(String::new()),
            Err(e) => Err(e),
        };
        Ok(Accounts::parse(&file("etc/passwd")?, &file("etc/group")?))
    }

    fn parse(passwd: &str, group: &str) -> Accounts {
        let users = passwd.lines().filter_map(|line| {
            let f: Vec<&str> = line.trim().split(':').collect();
            let home = f.get(5).unwrap_or(&"").to_string();
            Some(Account {
                name: f.first()?.to_string(),
                uid: f.get(2)?.parse().ok()?,
                gid: f.get(3)?.parse().ok()?,
                home,
            })
        });
        let groups = group.lines().filter_map(|line| {
            let f: Vec<&str> = line.trim().split(':').collect();
            let members = f
                .get(3)
                .unwrap_or(&"")
                .split(',')
                .filter(|m| !m.is_empty())
                .map(str::to_owned)
                .collect();
            Some(Group {
                name: f.first()?.to_string(),
                gid: f.get(2)?.parse().ok()?,
                members,
            })
        });
        Accounts {
            users: users.collect(),
            groups: groups.collect(),
        }
    }

    fn user(&self, name: &str) -> Option<&Account> {
        self.users.iter().find(|u| u.name == name)
    }

    fn gid(&self, text: &str) -> Result<u32, String> {
        if let Ok(gid) = text.parse() {
            return Ok(gid);
        }
        self.groups
            .iter()
            .find(|g| g.name == text)
            .map(|g| g.gid)
            .ok_or_else(|| format!("no groups found: {text:?}"))
    }
}

/// Decides; `image_user` is `user[:group]` of the image.
pub fn resolve(context: &LinuxContainerSecurityContext, image_user: &str, accounts: &Accounts) -> Result<User, String> {
    let wanted_gid = context.run_as_group.map(|g| id(g.value)).transpose()?;
    let (user, group) = if !context.run_as_username.is_empty() {
        (context.run_as_username.clone(), None)
    } else if let Some(uid) = context.run_as_user {
        (id(uid.value)?.to_string(), None)
    } else if let Some(gid) = wanted_gid {
        return Err(format!("user group \"{gid}\" is specified without user"));
    } else {
        match image_user.split_once(':') {
            Some((user, group)) => (user.to_owned(), Some(group.to_owned())),
            None => (image_user.to_owned(), None),
        }
    };
    let user = if user.is_empty() { "0".to_owned() } else { user };
    let account = match user.parse::<u32>() {
        Ok(uid) => accounts.users.iter().find(|u| u.uid == uid),
        Err(_) => Some(
            accounts
                .user(&user)
                .ok_or_else(|| format!("no users found: {user:?}"))?,
        ),
    };
    let uid = account.map_or_else(|| user.parse().unwrap_or(0), |a| a.uid);
    let gid = match (wanted_gid, group.filter(|g| !g.is_empty())) {
        (Some(gid), _) => gid,
        (None, Some(group)) => accounts.gid(&group)?,
        (None, None) => account.map_or(0, |a| a.gid),
    };
    let mut groups = BTreeSet::from([gid]);
    if let Some(account) = account
        && context.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge
    {
        groups.extend(
            accounts
                .groups
                .iter()
                .filter(|g| g.members.contains(&account.name))
                .map(|g| g.gid),
        );
    }
    for group in &context.supplemental_groups {
        groups.insert(id(*group)?);
    }
    let home = account.map(|a| a.home.clone()).filter(|h| !h.is_empty());
    Ok(User {
        uid,
        gid,
        groups: groups.into_iter().collect(),
        home,
    })
}

fn id(value: i64) -> Result<u32, String> {
    value.try_into().map_err(|_| format!("{value} is no user or group ID"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_cri::v1::Int64Value;

    fn accounts() -> Accounts {
        Accounts::parse(
            "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1001::/home/bob:/bin/sh\nbroken\n",
            "root:x:0:\nbob:x:1001:\nextra:x:50000:alice,bob\nwheel:x:10:root\n",
        )
    }

    fn context() -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext::default()
    }

    #[test]
    fn the_image_decides_by_default() {
        let root = resolve(&context(), "", &accounts()).unwrap();
        assert_eq!((root.uid, root.gid, root.groups), (0, 0, vec![0, 10]));
        let bob = resolve(&context(), "bob", &accounts()).unwrap();
        assert_eq!((bob.uid, bob.gid, &bob.groups[..]), (1000, 1001, &[1001, 50000][..]));
        assert_eq!(bob.home.as_deref(), Some("/home/bob"));
        assert_eq!(resolve(&context(), "1234:wheel", &accounts()).unwrap().gid, 10);
        assert!(resolve(&context(), "nobody-here", &accounts()).is_err());
    }

    #[test]
    fn the_configuration_wins() {
        let mut c = context();
        c.run_as_user = Some(Int64Value { value: 1000 });
        c.run_as_group = Some(Int64Value { value: 7 });
        c.supplemental_groups = vec![5, 5];
        assert_eq!(resolve(&c, "root", &accounts()).unwrap().groups, [5, 7, 50000]);
        c.supplemental_groups_policy = SupplementalGroupsPolicy::Strict as i32;
        assert_eq!(resolve(&c, "root", &accounts()).unwrap().groups, [5, 7]);
        c.run_as_user = None;
        assert!(resolve(&c, "root", &accounts()).is_err());
    }

    #[test]
    fn an_unknown_number_is_its_own_user_in_group_0() {
        let mut c = context();
        c.run_as_user = Some(Int64Value { value: 4711 });
        let user = resolve(&c, "", &accounts()).unwrap();
        assert_eq!((user.uid, user.gid, user.home), (4711, 0, None));
    }
}
