package awsfiles

import (
	"archive/zip"
	"bytes"
	"io"
	"strings"
)

// unzip reads the files of an archive: few, small, plain, and none with a folder in its name.
func unzip(data []byte) ([]file, error) {
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, refuse("the archive is broken or cut off (%v): download it again", err)
	}
	if len(z.File) > maxFiles {
		return nil, refuse("the archive has %d files, and an import has three: it is not AWS's", len(z.File))
	}
	var out []file
	for _, e := range z.File {
		switch {
		case e.Name == "" || strings.ContainsAny(e.Name, `/\`+"\x00") || strings.Contains(e.Name, ".."):
			return nil, refuse("the archive has a file %q with a folder in its name: it is not AWS's", e.Name)
		case !e.Mode().IsRegular():
			return nil, refuse("%s in the archive is not a regular file", e.Name)
		case e.Method != zip.Store && e.Method != zip.Deflate:
			return nil, refuse("%s in the archive is packed by method %d, which AWS does not use", e.Name, e.Method)
		case e.UncompressedSize64 > maxFile:
			return nil, refuse("%s in the archive would have %d bytes: it holds no import parameters", e.Name, e.UncompressedSize64)
		case e.Flags&1 != 0:
			return nil, refuse("%s in the archive is encrypted", e.Name)
		}
		for _, f := range out {
			if strings.EqualFold(f.name, e.Name) {
				return nil, refuse("the archive has %s twice", e.Name)
			}
		}
		r, err := e.Open()
		if err != nil {
			return nil, refuse("%s in the archive cannot be read (%v): download it again", e.Name, err)
		}
		b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
		_ = r.Close()
		switch {
		case err != nil:
			return nil, refuse("%s in the archive is broken or cut off (%v): download it again", e.Name, err)
		case len(b) > maxFile:
			return nil, refuse("%s in the archive unpacks to more than %d bytes: it holds no import parameters", e.Name, maxFile)
		}
		out = append(out, file{e.Name, b, e.Modified.UTC()})
	}
	return out, nil
}
