//! The grammar of `vzfs template`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use vzfs::api::MergeRule;
use vzfs::types::{Tag, TemplateName, TemplateRef, TemplateSpec, Version};

use super::key_value;

const BUILD_HELP: &str = "\
A definition:

  name = \"nginx\"                 # required
  version = \"1.22-1\"             # required
  kind = \"app\"                   # required: \"os\" or \"app\"
  on = \"debian@12\"               # app: the OS template it stands on
  summary = \"a web server\"
  packages = [\"nginx-light\"]     # NAME, NAME=VERSION, NAME:ARCHITECTURE
  recommends = false             # install what packages recommend
  scripts = [\"nginx -t\"]         # each with /bin/sh -e inside, after packages and files
  exclude = [\"usr/share/man/**\"] # left out of the template
  source_date_epoch = 1700000000 # no file is newer; default: the newest package
  [labels]
  team = \"web\"
  [os]                           # os only
  suite = \"bookworm\"             # required
  variant = \"minbase\"            # essential, apt, minbase, buildd, important, standard
  components = [\"main\"]
  mirrors = []                   # default: the host's package sources
  [[files]]
  path = \"/etc/nginx/conf.d/x\"
  content = \"...\"                # or source = \"FILE\", relative to the definition
  mode = \"0644\"
  owner = \"root\"
  group = \"root\"
  [[merge]]                      # how files are merged that templates, or an update and a VE, both change
  path = \"etc/nginx/*.list\"     # the first match counts, and these go before the built-in rules
  rule = \"lines\"                # text, lines, log, stanzas, whole, keep, take, derived, passwd, group, ...
  [[merge]]
  path = \"var/lib/x/index\"
  generate = \"x-index {path}\"   # for derived files: makes it anew, inside

OS templates are made with mmdebstrap in a scratch folder of TMPDIR (default: /var/tmp), application templates in a \
throw-away VE. Logs, caches, ssh host keys and machine ids are taken out. The same definition and the same versions \
of packages give the same digest.

A definition of another version makes another version of the template; the old ones stay. The definition and the files that it names are kept \
with the template (vzfs template recipe).";

const PATCH_HELP: &str = "\
The new version is made in a throw-away VE on the old one, in this order: packages (--upgrade, --package), --remove, --overlay, --file, --script, \
--run. It is cleaned as after a build, and the same changes with the same versions of packages give the same digest. The old version stays, \
and so do the VEs on it.

The new version of an OS template is a whole root filesystem again, in which unchanged files are the same as before. --upgrade brings all packages \
of an OS template to what its package sources have; of an application template only the packages that it brings itself, because those of \
the OS are the OS template's business.

If the old version was built of a definition, the patch is kept with it, and --cascade later does both again.

  vzfs template patch debian --to 12.1 --upgrade --cascade
  vzfs template patch nginx --to 1.22.1 --file nginx.conf:/etc/nginx/nginx.conf:0644 --run 'nginx -t'";

const CASCADE_HELP: &str = "\
Of every application template, the newest version that stands on a version of this OS is looked at, and with it what it needs below it. If it stands on \
an older version of the OS, it gets a new version on this one: 1.22 becomes 1.22+debian12.1, which is newer than 1.22 and older than 1.22.1, \
unless --cascade-version names another. Old versions stay, tags stay where they are.

One that was built of a definition is built again, with its patches. One that was imported or committed gets its changes put on the new OS, \
merged three-way with what is new there; if both changed something that cannot be merged, it is refused with the files' names. \
What fails does not stop the others, and makes the exit code 1.";

/// What a new template is told besides its content.
#[derive(Args, Debug, Default)]
pub(crate) struct Description {
    /// One line about it.
    #[arg(long, default_value = "")]
    pub(crate) summary: String,
    /// A label; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) labels: Vec<(String, String)>,
    /// Leave out what matches this glob (paths without a leading slash); may be repeated.
    #[arg(long, value_name = "GLOB")]
    pub(crate) exclude: Vec<String>,
    /// How files are merged that match this glob, as [[merge]] of a definition says; may be repeated, the first match counts.
    #[arg(long = "merge", value_name = "GLOB=RULE", value_parser = key_value)]
    merge: Vec<(String, String)>,
}

impl Description {
    /// The rules as the daemon knows them.
    pub(crate) fn merge_rules(&self) -> Vec<MergeRule> {
        let rule = |(path, rule): &(String, String)| MergeRule {
            path: path.clone(),
            rule: rule.clone(),
            generate: None,
        };
        self.merge.iter().map(rule).collect()
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum TemplateCommand {
    /// Make a template of a directory, a tar (also compressed) or an OCI layout.
    Import {
        /// The template to make.
        #[arg(value_name = "NAME@VERSION")]
        template: TemplateSpec,
        /// The directory, tar or OCI layout, on the daemon's host.
        source: PathBuf,
        /// The OS template it was made on: makes it an application template.
        #[arg(long, value_name = "REF")]
        os: Option<TemplateRef>,
        #[command(flatten)]
        description: Description,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Build a template from a definition.
    #[command(after_help = BUILD_HELP, disable_version_flag = true)]
    Build(BuildArgs),
    /// Make a new version of a template by changing one that is there: with packages, files, scripts.
    #[command(after_help = PATCH_HELP)]
    Patch(PatchArgs),
    /// Bring the application templates of an OS to one of its versions, as build and patch do with --cascade.
    #[command(after_help = CASCADE_HELP)]
    Cascade {
        /// The OS template that they shall stand on.
        #[arg(value_name = "REF")]
        os: TemplateRef,
        /// The version that an application gets; may be repeated.
        #[arg(long = "cascade-version", value_name = "NAME=VERSION", value_parser = name_version)]
        versions: Vec<(TemplateName, Version)>,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Give a version of a template a tag, or move the tag to it: NAME@TAG then means that version.
    Tag {
        /// The version: NAME@VERSION, NAME@TAG, or NAME for the newest.
        #[arg(value_name = "REF")]
        template: TemplateRef,
        /// The tag (stable, candidate, ...): it begins with a letter, and no version of the template has that name.
        tag: Tag,
    },
    /// Take a tag away.
    Untag {
        /// The template.
        name: TemplateRef,
        /// The tag.
        tag: Tag,
    },
    /// List the versions of a template in their order: what each came from, when, its tags, and how many VEs stand on it.
    History {
        /// The template.
        name: TemplateRef,
    },
    /// Write what a template was built of as a tar: its definition, the files that it names, and its patches.
    Recipe {
        /// NAME (its newest version), NAME@VERSION or NAME@TAG.
        #[arg(value_name = "REF")]
        template: TemplateRef,
        /// The tar to write; `-` is stdout.
        file: PathBuf,
    },
    /// List the templates.
    #[command(visible_alias = "ls")]
    List,
    /// Show one template.
    Show {
        /// NAME (its newest version), NAME@VERSION or NAME@TAG.
        #[arg(value_name = "REF")]
        template: TemplateRef,
    },
    /// Compare two templates: packages, files, and how much is different.
    Diff {
        /// The old one.
        #[arg(value_name = "REF")]
        old: TemplateRef,
        /// The new one.
        #[arg(value_name = "REF")]
        new: TemplateRef,
    },
    /// Read everything a template needs and check it against its digests.
    Verify {
        /// NAME (its newest version), NAME@VERSION or NAME@TAG.
        #[arg(value_name = "REF")]
        template: TemplateRef,
    },
    /// Write a template as a tar.
    Export {
        /// NAME (its newest version), NAME@VERSION or NAME@TAG.
        #[arg(value_name = "REF")]
        template: TemplateRef,
        /// The tar to write; `-` is stdout.
        file: PathBuf,
    },
    /// Remove a template that nothing stands on.
    Rm {
        /// NAME@VERSION, or NAME for its newest version.
        #[arg(value_name = "REF")]
        template: TemplateRef,
        /// Also when it has tags; they go with it.
        #[arg(long, short)]
        force: bool,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

/// `template build`.
#[derive(Args, Debug)]
pub(crate) struct BuildArgs {
    /// The definition, a TOML file.
    #[arg(value_name = "FILE.toml")]
    pub(crate) file: PathBuf,
    /// The version to make, in place of the definition's.
    #[arg(long, value_name = "VERSION")]
    pub(crate) version: Option<Version>,
    /// The OS template to build on, in place of the definition's.
    #[arg(long, value_name = "REF")]
    pub(crate) on: Option<TemplateRef>,
    #[command(flatten)]
    pub(crate) cascade: CascadeArgs,
    /// Only say what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What follows a new version of an OS template.
#[derive(Args, Debug)]
pub(crate) struct CascadeArgs {
    /// For an OS template: bring its application templates to the new version (see `vzfs template cascade --help`).
    #[arg(long)]
    pub(crate) cascade: bool,
    /// The version that an application gets with --cascade; may be repeated.
    #[arg(long = "cascade-version", value_name = "NAME=VERSION", value_parser = name_version, requires = "cascade")]
    pub(crate) versions: Vec<(TemplateName, Version)>,
}

/// `template patch`.
#[derive(Args, Debug)]
pub(crate) struct PatchArgs {
    /// The version to change: NAME@VERSION, NAME@TAG, or NAME for the newest.
    #[arg(value_name = "REF")]
    pub(crate) template: TemplateRef,
    /// The version to make.
    #[arg(long, value_name = "VERSION")]
    pub(crate) to: Version,
    /// Upgrade the packages to what the package sources have.
    #[arg(long)]
    pub(crate) upgrade: bool,
    /// Install this package (NAME, NAME=VERSION, NAME:ARCHITECTURE); may be repeated.
    #[arg(long = "package", short, value_name = "PACKAGE")]
    pub(crate) packages: Vec<String>,
    /// Install what the packages recommend as well.
    #[arg(long)]
    pub(crate) recommends: bool,
    /// Remove this path and what is below it; may be repeated.
    #[arg(long = "remove", value_name = "PATH")]
    pub(crate) removals: Vec<PathBuf>,
    /// Copy everything in this directory over the template, with its modes, owners and links.
    #[arg(long, value_name = "DIR")]
    pub(crate) overlay: Option<PathBuf>,
    /// Place a file, as root's, with this mode (octal) or its own; may be repeated.
    #[arg(long = "file", value_name = "SRC:DST[:MODE]")]
    pub(crate) files: Vec<PatchFile>,
    /// Run this script inside with /bin/sh -e; may be repeated.
    #[arg(long = "script", value_name = "FILE")]
    pub(crate) scripts: Vec<PathBuf>,
    /// Run this command inside with /bin/sh -e; may be repeated.
    #[arg(long = "run", value_name = "COMMAND")]
    pub(crate) commands: Vec<String>,
    /// Leave out changes at what matches this glob (paths without a leading slash); may be repeated.
    #[arg(long, value_name = "GLOB")]
    pub(crate) exclude: Vec<String>,
    /// No changed file is newer than this, in seconds since 1970; default: the newest package.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) source_date_epoch: Option<u32>,
    /// One line about it; default: that of the old version.
    #[arg(long)]
    pub(crate) summary: Option<String>,
    #[command(flatten)]
    pub(crate) cascade: CascadeArgs,
    /// Only say what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// `--file` of `template patch`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PatchFile {
    /// What is placed.
    pub(crate) source: PathBuf,
    /// Where, absolute in the template.
    pub(crate) target: PathBuf,
    /// Permission bits; the file's own without them.
    pub(crate) mode: Option<u32>,
}

impl std::str::FromStr for PatchFile {
    type Err = String;

    fn from_str(text: &str) -> Result<PatchFile, String> {
        let mut parts = text.splitn(3, ':');
        let (Some(source), Some(target), mode) = (parts.next(), parts.next(), parts.next()) else {
            return Err("write SRC:DST or SRC:DST:MODE".to_owned());
        };
        if source.is_empty() {
            return Err("SRC is empty".to_owned());
        }
        let mode = match mode.map(|mode| u32::from_str_radix(mode, 8)) {
            None => None,
            Some(Ok(mode)) if mode <= 0o7777 => Some(mode),
            Some(_) => return Err("MODE has octal digits: 0644".to_owned()),
        };
        Ok(PatchFile { source: source.into(), target: target.into(), mode })
    }
}

fn name_version(text: &str) -> Result<(TemplateName, Version), String> {
    let (name, version) = text.split_once('=').ok_or("write NAME=VERSION")?;
    let name = name.parse().map_err(|e: vzfs::types::TypeError| e.to_string())?;
    Ok((name, version.parse().map_err(|e: vzfs::types::TypeError| e.to_string())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_patches() {
        let file = |text: &str| text.parse::<PatchFile>();
        let expected = PatchFile { source: "a".into(), target: "/b".into(), mode: Some(0o600) };
        assert_eq!(file("a:/b:0600"), Ok(expected.clone()));
        assert_eq!(file("a:/b"), Ok(PatchFile { mode: None, ..expected }));
        for bad in ["", "a", ":/b", "a:/b:rw", "a:/b:08", "a:/b:10000"] {
            assert!(file(bad).is_err(), "{bad}");
        }
    }
}
