//! Makes the first inputs of each target's corpus from real records: `cargo run --example seeds FOLDER` in `fuzz`, FOLDER being `corpus`.
//! Always the same files: names begin with `seed-`.

use std::fs;
use std::io::Write;
use std::path::Path;

use vzfs::archive::{TemplateSource, export_tar};
use vzfs::meta::{EntryRecord, InodeRecord, PrivateContent};
use vzfs::tree::{Meta, Tree, TreeBuilder};
use vzfs::types::{FileKind, Ino, Timestamp};
use vzfs_fuzz::{World, acl, name, sample, seal};

struct Seeds<'a>(&'a Path);

impl Seeds<'_> {
    fn put(&self, target: &str, name: &str, bytes: impl AsRef<[u8]>) {
        let dir = self.0.join(target);
        fs::create_dir_all(&dir).expect("a folder");
        fs::write(dir.join(format!("seed-{name}")), bytes).expect("written");
    }
}

fn main() {
    let folder = std::env::args_os().nth(1).expect("usage: seeds FOLDER");
    let seeds = Seeds(Path::new(&folder));
    let world = World::new();
    let base = &world.base;
    trees(&seeds, &world);
    records(&seeds, base);
    archives(&seeds, &world, base);
    images(&seeds);
    merges(&seeds);
    texts(&seeds);
    requests(&seeds);
    fs::remove_dir_all(&world.dir).expect("removable");
}

fn trees(seeds: &Seeds<'_>, world: &World) {
    let image = |tree: TreeBuilder| tree.finish().expect("fits").bytes;
    let batch = world.blobs.batch();
    seeds.put("tree", "base", image(sample(&batch)));
    seeds.put("tree", "root", image(TreeBuilder::new(Meta::new(FileKind::Dir, 0o755))));
    let mut layer = sample(&batch);
    let root = layer.root();
    layer.whiteout(root, name("gone")).expect("a directory");
    layer.remove(root, name("su"));
    layer.set_opaque(root, true);
    seeds.put("tree", "layer", image(layer));
    // Many inodes make the index matter.
    let mut many = sample(&batch);
    for index in 0..100 {
        let meta = Meta::new(FileKind::Fifo, 0o600);
        many.insert(root, name(&format!("{index}")), meta, vzfs::tree::Content::None).expect("fits");
    }
    seeds.put("tree", "many", image(many));
}

fn records(seeds: &Seeds<'_>, base: &Tree) {
    let record = |kind, content| InodeRecord {
        kind,
        perm: 0o755,
        uid: 1,
        gid: 2,
        rdev: 0,
        nlink: if kind == FileKind::Dir { 2 } else { 1 },
        atime: Timestamp::new(1, 2),
        mtime: Timestamp::new(-3, 4),
        ctime: Timestamp::new(5, 6),
        parent: u64::from(kind == FileKind::Dir),
        content,
        xattrs: [(b"user.a".to_vec(), b"b".to_vec())].into(),
    };
    let digest = *base.blobs().next().expect("a blob").0.as_bytes();
    let all = [
        record(FileKind::Dir, PrivateContent::None),
        record(FileKind::File, PrivateContent::Blob { digest, size: 4, allocated_bytes: 4096 }),
        record(FileKind::File, PrivateContent::Data { id: 1, stamp: Timestamp::default() }),
        record(FileKind::Symlink, PrivateContent::Symlink(b"target".to_vec())),
        InodeRecord { nlink: 0, ..record(FileKind::Fifo, PrivateContent::None) },
    ];
    let framed = |mark: u8, bytes: &[u8]| {
        let mut out = vec![bytes.len() as u8, mark];
        out.extend_from_slice(bytes);
        out
    };
    let mut together = Vec::new();
    for (index, record) in all.iter().enumerate() {
        seeds.put("records", &format!("inode-{index}"), framed(0, &record.encode()));
        together.extend(framed(0, &record.encode()));
    }
    for view in base.inodes() {
        together.extend(framed(0x80, &EntryRecord::Node(view.ino(), view.kind()).encode()));
    }
    together.extend(framed(0x80, &EntryRecord::Whiteout.encode()));
    together.extend(framed(0x80, &EntryRecord::Node(Ino::ROOT, FileKind::Dir).encode()));
    seeds.put("records", "together", together);
}

fn archives(seeds: &Seeds<'_>, world: &World, base: &Tree) {
    let mut tar = Vec::new();
    export_tar(TemplateSource { tree: base, blobs: &world.blobs }, &mut tar).expect("exportable");
    for form in [0, 1, 3, 5] {
        seeds.put("archive", &format!("base-{form}"), [&[form][..], &tar].concat());
    }
    // What a program compressed itself, unwrapped once.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let packed = gzip.write_all(&tar).and_then(|()| gzip.finish()).expect("in memory");
    seeds.put("archive", "gzip", [&[0][..], &packed].concat());
    seeds.put(
        "archive",
        "zstd",
        [&[0][..], &zstd::stream::encode_all(&tar[..], 3).expect("in memory")].concat(),
    );
    let header = |path: &str, flag: u8, size: usize, patches: &[(usize, &[u8])]| {
        let mut block = [0; 512];
        block[..path.len()].copy_from_slice(path.as_bytes());
        block[100..108].copy_from_slice(b"0000644\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        for (at, bytes) in patches {
            block[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        seal(&mut block);
        block.to_vec()
    };
    let padded = |text: &[u8]| {
        let mut bytes = text.to_vec();
        bytes.resize(text.len().next_multiple_of(512), 0);
        bytes
    };
    let record = |keyword: &str, value: &str| {
        let rest = format!(" {keyword}={value}\n");
        let length =
            (1..).find(|length| length.to_string().len() + rest.len() == *length).unwrap_or_default();
        format!("{length}{rest}")
    };
    let end = vec![0; 1024];
    let long = "d/".repeat(80) + "file";
    let gnu_long = [
        header("././@LongLink", b'L', long.len(), &[]),
        padded(long.as_bytes()),
        header("x", b'0', 3, &[]),
        padded(b"abc"),
    ];
    let map: &[(usize, &[u8])] = &[(386, b"00000000010\0"), (398, b"00000000003\0"), (483, b"00000000100\0")];
    let gnu_sparse = [header("sparse", b'S', 3, map), padded(b"abc")];
    let pax = [
        record("GNU.sparse.major", "1"),
        record("GNU.sparse.minor", "0"),
        record("GNU.sparse.name", "real"),
        record("GNU.sparse.realsize", "9000"),
    ]
    .concat();
    let pax_sparse = [
        header("pax", b'x', pax.len(), &[]),
        padded(pax.as_bytes()),
        header("s", b'0', 515, &[]),
        padded(b"1\n100\n3\n"),
        padded(b"abc"),
    ];
    let acl = record("SCHILY.acl.access", "user::rw-,user:5:r--,group::r--,mask::r--,other::---")
        + &record("mtime", "-1.5")
        + &record("uid", "4000000000")
        + &record("SCHILY.xattr.user.a%3Db", "value");
    let global = record("comment", "for all");
    let attributes = [
        header("g", b'g', global.len(), &[]),
        padded(global.as_bytes()),
        header("pax", b'x', acl.len(), &[]),
        padded(acl.as_bytes()),
        header("with", b'0', 0, &[]),
        header("hard", b'1', 0, &[(157, b"with")]),
        header("dev", b'3', 0, &[(329, b"0000001\0"), (337, b"0000003\0")]),
    ];
    for (kind, blocks) in [
        ("long", &gnu_long[..]),
        ("sparse", &gnu_sparse),
        ("pax-sparse", &pax_sparse),
        ("attributes", &attributes),
    ] {
        seeds.put("archive", kind, [&[0][..], &blocks.concat(), &end].concat());
    }
}

fn images(seeds: &Seeds<'_>) {
    // `arbitrary` takes apart what it is given from both ends, so such inputs cannot be written by hand; texts to splice in can.
    let manifest = r#"{"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","@0},{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","@1}]}"#;
    let index = r#"{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","@2,"platform":{"os":"linux","architecture":"amd64"}}]}"#;
    seeds.put("image", "manifest", manifest);
    seeds.put("image", "index", index);
}

fn merges(seeds: &Seeds<'_>) {
    let put = |path: &str, base: &str, ours: &str, theirs: &str| {
        let rules = vzfs::merge::rules::RULES;
        let index = rules.iter().position(|(glob, _)| *glob == path).unwrap_or(rules.len());
        let parts = [base.as_bytes(), ours.as_bytes(), theirs.as_bytes()];
        let bytes = [&[index as u8][..], &parts.join(&0xff)].concat();
        seeds.put("merge", &path.replace('/', "-").replace('*', "x"), bytes);
    };
    let package = |name: &str, version: &str| {
        format!(
            "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\nConffiles:\n /etc/{name} 0123\nDescription: a\n b\n\n"
        )
    };
    let (a, b) = (package("a", "1"), package("b", "1"));
    put("var/lib/dpkg/status", &a, &(a.clone() + &b), &package("a", "2"));
    put("var/lib/dpkg/diversions", "/a\n/a.d\np\n", "/a\n/a.d\np\n/b\n/b.d\n:\n", "");
    put(
        "var/lib/dpkg/statoverride",
        "root root 4755 /a\n",
        "root mail 2755 /b\nroot root 4755 /a\n",
        "root x 4755 /a\n",
    );
    put("var/lib/dpkg/triggers/Unincorp", "t a\n", "t a b\n", "t a c\nu d\n");
    put("var/lib/dpkg/triggers/*", "/usr a\n", "/usr a\n/lib b\n", "/usr a\n/etc c\n");
    let alternatives = "auto\n/usr/bin/editor\neditor.1\n/usr/share/man/editor.1\n\n/bin/nano\n40\n/man/nano\n/bin/vi\n30\n\n\n";
    put(
        "var/lib/dpkg/alternatives/*",
        "auto\n/usr/bin/editor\n\n/bin/nano\n40\n\n",
        alternatives,
        "manual\n/usr/bin/editor\n\n/bin/ed\n1\n\n",
    );
    put(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n",
        "root:x:0:0:root:/root:/bin/sh\na:x:100:100::/:/bin/false\n",
        "root:x:0:0:root:/root:/bin/bash\nb:x:100:101::/:/bin/false\n",
    );
    put("etc/group", "root:x:0:\nadm:x:4:\n", "root:x:0:\nadm:x:4:a\n", "root:x:0:\nadm:x:4:b,c\nd:x:5:\n");
    put("etc/shadow", "root:*:1:0:9:7:::\n", "root:*:2:0:9:7:::\n", "root:!:1:0:9:7:::\na:!:1::::::\n");
    put("etc/gshadow", "root:*::\n", "root:*::a\n", "root:*:b:\n");
    put(
        "etc/subuid",
        "a:100000:65536\n",
        "a:100000:65536\nb:165536:65536\n",
        "a:100000:65536\nc:165536:65536\n",
    );
    put("etc/shells", "# comment\n/bin/sh\n", "# comment\n/bin/sh\n/bin/bash\n", "/bin/sh\n/bin/dash\n");
    put("var/log/**", "one\n", "one\ntwo\n", "one\nthree\n");
    put("text", "a\nb\nc\nd\n", "a\nB\nc\nd\n", "a\nb\nc\nD\ne\n");
}

fn texts(seeds: &Seeds<'_>) {
    let put = |what: u8, name: &str, text: &[u8]| seeds.put("texts", name, [&[what][..], text].concat());
    put(0, "acl", &acl());
    for file in fs::read_dir("../templates").expect("the definitions that vzfs comes with") {
        let path = file.expect("listed").path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        put(1, &name, &fs::read(&path).expect("readable"));
    }
    put(1, "app", b"name = \"x\"\nversion = \"1\"\nkind = \"app\"\non = \"debian@12\"\npackages = [\"p\"]\nscripts = [\"true\"]\n[[files]]\npath = \"/etc/x\"\ncontent = \"y\"\nmode = \"0644\"\n");
    put(2, "reference", b"debian@12.5-1~rc1");
    put(2, "versions", b"1.0 1.0~rc1 1.10 1.9 2 01 1.0-1");
    put(2, "digest", "0123456789abcdef".repeat(4).as_bytes());
    put(2, "time", b"2026-11-24T02:05:00.000000001Z");
    put(3, "path", b"etc/caf\\xe9 \\\\ \xff");
}

fn requests(seeds: &Seeds<'_>) {
    // See `images`: words for the mutator to splice in.
    let bodies = [
        r#"{"name":"w","templates":["t@1"],"count":2,"labels":{"a":"b"}}"#,
        r#"{"template":"u@2","summary":"s","exclude":["var/**","[a-c]*"],"packages":[{"name":"p","version":"1"}]}"#,
        r#"{"template":"u@2","source":"relative","kind":"app","os":"t"}"#,
        r#"{"name":"renamed"}"#,
        r#"{"force":true}"#,
    ];
    for (index, body) in bodies.iter().enumerate() {
        seeds.put("control", &format!("body-{index}"), body);
    }
    let digest = "0123456789abcdef".repeat(4);
    let time = r#"{"secs":1,"nanos":2}"#;
    let stats = r#"{"inodes":1,"files":0,"symlinks":0,"dirs":1,"bytes":0}"#;
    let template =
        format!(r#"t a@1 {{"spec":"a@1","kind":"os","layer":"{digest}","created":{time},"stats":{stats}}}"#);
    let ve = format!(
        r#"v 1 {{"name":"v","id":1,"stack":[{{"spec":"a@1","layer":"{digest}"}}],"base":"{digest}","created":{time}}}"#
    );
    let base = format!(r#"b {digest} {{"base":"{digest}","layers":["{digest}"]}}"#);
    seeds.put("catalog", "records", [&*template, &*ve, &*base, "s next_ve 7"].join("\n"));
    seeds.put("catalog", "removing", ve.replace("\"created\"", "\"removing\":true,\"created\""));
}
